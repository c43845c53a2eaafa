"""Trajectories between cell states, decoded."""

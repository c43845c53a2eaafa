"""Trajectories between cell states, decoded into gene expression."""

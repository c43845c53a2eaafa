"""Trajectories toward a gene program."""

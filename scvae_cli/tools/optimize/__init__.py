"""Trajectories that increase a gene program."""

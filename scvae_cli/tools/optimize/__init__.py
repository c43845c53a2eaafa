"""Trajectories along which the score of a gene program increases."""

"""Twins of the networks and likelihoods, compiled for the CPU."""

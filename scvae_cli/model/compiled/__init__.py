"""Implementations of the networks and likelihoods that are compiled for the CPU."""

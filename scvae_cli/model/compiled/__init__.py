"""Implementations of networks and likelihoods that numba compiles for the CPU."""

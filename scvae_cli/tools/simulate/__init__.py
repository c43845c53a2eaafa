"""Simulated counts with known true parameters."""

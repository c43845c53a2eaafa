"""Simulated counts whose truth is known."""

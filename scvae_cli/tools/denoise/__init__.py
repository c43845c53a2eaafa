"""Denoised counts of every cell."""

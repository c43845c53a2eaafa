"""Quantities that a trained model computes for cells: posteriors, expected counts, neighbor graph and others."""

"""Perturbations predicted for groups that were never treated."""

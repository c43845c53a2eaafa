"""Fitting a model to counts."""

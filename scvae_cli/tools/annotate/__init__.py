"""Prediction of cell labels from labeled cells, with calibrated probabilities."""

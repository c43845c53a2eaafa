"""Quantities of cells that are computed with a trained model, such as posteriors and expected counts."""

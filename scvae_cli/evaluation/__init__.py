"""Baselines, retraining and count thinning, which several tools use to evaluate a model."""

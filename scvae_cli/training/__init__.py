"""Training of a model on counts or real numbers."""

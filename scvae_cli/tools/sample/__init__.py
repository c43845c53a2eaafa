"""New cells drawn from a model."""

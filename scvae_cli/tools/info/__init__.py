"""Information on a model, or on the results in a file."""

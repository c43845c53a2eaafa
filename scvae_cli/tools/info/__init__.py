"""What a model is, and which results a file holds."""

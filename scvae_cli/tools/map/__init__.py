"""New batches in a trained model, without a new training of the model."""

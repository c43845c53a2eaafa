"""Add new batches to a trained model, without training the model again."""

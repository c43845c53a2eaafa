"""New batches taken into a trained model, which otherwise stays as it is."""

"""A diagnosis of a trained model: verdicts on the quality of the model, each with a measured number and advice."""

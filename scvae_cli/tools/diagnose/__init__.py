"""A diagnosis of a trained model: verdicts on its quality, each with the number behind it and advice."""

"""The latent position of every cell."""

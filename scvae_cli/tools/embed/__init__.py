"""The embedding and the latent position of every cell."""

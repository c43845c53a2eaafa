"""scvae: variational autoencoders for raw single-cell counts."""

__version__ = "0.1.0"

"""The variational autoencoder: likelihoods, networks, and the folder a model lives in."""

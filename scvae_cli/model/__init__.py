"""The variational autoencoder: likelihoods, networks, and the folder that stores a trained model."""

"""Order of the cells by their distance from a root, and probabilities of the groups into which the cells develop."""

"""How likely each cell is, and which are unusual."""

"""Order of cells from a root, and their fates."""

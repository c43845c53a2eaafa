"""Order of cells by their distance from a root, and the end group of each cell."""

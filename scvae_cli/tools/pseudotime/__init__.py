"""Order of the cells by distance from a root, where the order begins, and the end group to which each cell belongs."""

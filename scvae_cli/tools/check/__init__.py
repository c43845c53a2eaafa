"""A check of the contents of a file, and of what training would refuse."""

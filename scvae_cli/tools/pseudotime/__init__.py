"""Cells in order from a root, and their fates."""

"""Differential expression between two groups of cells."""

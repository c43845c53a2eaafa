"""One training option varied."""

"""Parts of figures that several tools use, and functions that save figures."""

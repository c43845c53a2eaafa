"""Labels of cells, learned from labeled cells, with calibrated probabilities."""

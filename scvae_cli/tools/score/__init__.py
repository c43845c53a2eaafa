"""How likely each cell is under the model, and which cells are anomalies."""

"""The likelihood of each cell under the model, and anomalies among the cells."""

"""What several tools train or set aside beside the model."""

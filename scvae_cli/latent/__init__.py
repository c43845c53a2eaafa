"""What one trained model says about cells: one question a file."""

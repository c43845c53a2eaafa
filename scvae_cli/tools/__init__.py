"""What users do with a model: one folder per capability."""

"""What users do with a model: one folder a capability."""

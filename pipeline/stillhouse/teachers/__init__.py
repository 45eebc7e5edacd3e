"""Teachers, the models that label: one module per kind, found by name."""

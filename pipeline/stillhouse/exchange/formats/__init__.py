"""The exchange formats: one module per format, found by name."""

"""The models that label: one file a kind, found by name."""

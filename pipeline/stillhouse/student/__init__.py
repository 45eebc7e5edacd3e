"""The student: its untrained weights, its training data, its losses and its training."""

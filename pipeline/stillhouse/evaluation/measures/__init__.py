"""What is measured of each model."""

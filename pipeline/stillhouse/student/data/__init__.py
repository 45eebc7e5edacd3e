"""What a student learns from: rows of a dataset, as batches."""

"""A student's training data: rows of a dataset, as batches."""

"""Where datasets are stored: local folders, and stores behind a URL (S3 and other fsspec file systems)."""

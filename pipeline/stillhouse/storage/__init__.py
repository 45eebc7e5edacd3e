"""Where datasets lie: folders of this machine, and stores behind a URL (S3 and whatever fsspec speaks)."""

"""Running and reading language models."""

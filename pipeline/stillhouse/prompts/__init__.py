"""Read prompts: rows of a source, rendered by a template into messages."""

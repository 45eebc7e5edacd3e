"""Parse and check user input: files, YAML, table cells, URLs."""

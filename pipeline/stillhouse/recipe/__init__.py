"""The recipe: one module per section of the YAML file, and the loader."""

"""The recipe: one module a section of the YAML file, and how it is loaded."""

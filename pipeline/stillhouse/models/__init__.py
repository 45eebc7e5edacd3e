"""Everything that runs or reads a language model."""

"""Several students of one recipe, and one report on size against quality."""

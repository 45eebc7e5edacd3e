"""Compare several students of one recipe in one report on size against quality."""

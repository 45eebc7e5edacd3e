"""A finished student: its folder, its card, and its quantised copy."""

"""Divergences between teacher and student: one file each, found by name."""

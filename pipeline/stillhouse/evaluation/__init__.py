"""Measure teacher, baselines and student on the held-out prompts, and report the figures side by side."""

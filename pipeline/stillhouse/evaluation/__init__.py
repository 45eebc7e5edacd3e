"""Measure teacher, baselines and student on held-out prompts, and report them side by side."""

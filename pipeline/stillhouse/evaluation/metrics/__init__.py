"""Metrics of the task: one file a kind, or an entry point `stillhouse.metrics`; base.py says what it must have."""

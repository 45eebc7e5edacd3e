"""Task metrics: one module per kind, or an entry point `stillhouse.metrics`; base.py defines the interface."""

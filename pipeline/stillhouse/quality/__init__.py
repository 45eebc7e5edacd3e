"""Quality filters, which keep or reject completions with a reason: one module per filter, found by name."""

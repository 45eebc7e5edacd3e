"""Keep or reject a completion, with a reason: one file a filter, found by name."""

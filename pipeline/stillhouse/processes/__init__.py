"""Other processes: those that train together, those that a command starts, and how they end together."""

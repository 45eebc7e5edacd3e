"""The formats that datasets are exchanged in: one file each, found by name."""

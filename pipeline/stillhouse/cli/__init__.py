"""The command line: it parses, calls a stage, and prints."""

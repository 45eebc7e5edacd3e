"""The stages of a run: what the command line, the flows and the library call."""

"""Labelled datasets in other projects' formats: written by export.py, read by imports.py, one file a format."""

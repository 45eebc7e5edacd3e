"""Prompts: rows of a source, through a template, into messages."""

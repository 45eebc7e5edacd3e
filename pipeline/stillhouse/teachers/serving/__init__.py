"""Servers that teachers stand behind: how they are spoken to, chosen among, started and stopped."""

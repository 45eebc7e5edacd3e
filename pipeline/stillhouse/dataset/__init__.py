"""Labelled datasets on disk: versioned Parquet with a manifest, a card, and checksums."""

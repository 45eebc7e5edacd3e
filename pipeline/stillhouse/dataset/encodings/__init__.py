"""Encodings of soft labels on disk: one module per encoding, found by name."""

from stillhouse.dataset.encodings.base import Encoding, PackedLabels, find_encoding, pad_entries

__all__ = ["Encoding", "PackedLabels", "find_encoding", "pad_entries"]

"""How soft labels lie on disk: one file an encoding, found by name."""

from stillhouse.dataset.encodings.base import Encoding, PackedLabels, find_encoding

__all__ = ["Encoding", "PackedLabels", "find_encoding"]

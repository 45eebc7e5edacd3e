"""Stillhouse: turn a large teacher language model into a small student.

    prompts -> teacher -> labelled dataset -> student -> report

Each stage is a package here; docs/architecture.md says which may import which.
"""

from stillhouse.processes.quiet import quiet_libraries

__version__ = "0.1.0"

quiet_libraries()

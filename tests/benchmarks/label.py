"""What labelling promises, measured: `make bench-label`.

    python -m tests.benchmarks.label                    # all four parts, into docs/benchmarks.md
    python -m tests.benchmarks.label throughput         # or layers, memory, kills: that part alone
    python -m tests.benchmarks.label kills --small --output /tmp/try.md

Each part prints its tables and writes its own section. `--small` tries the scripts out with figures that mean nothing.
"""

from __future__ import annotations

import argparse
from importlib import import_module
from pathlib import Path

from tests.benchmarks.shared import DOCS, write_section

_PARTS = ("throughput", "layers", "memory", "kills")


def main() -> None:
    parser = argparse.ArgumentParser(description="Measure what labelling promises.")
    parser.add_argument("parts", nargs="*", metavar="PART", help=f"{', '.join(_PARTS)}; all, if none is named")
    parser.add_argument("--small", action="store_true", help="few prompts, one round: try the scripts out")
    parser.add_argument("--output", type=Path, default=DOCS, help="the Markdown file with the sections")
    given = parser.parse_args()
    unknown = set(given.parts) - set(_PARTS)
    if unknown:
        parser.error(f"there is no part {', '.join(sorted(unknown))}: choose from {', '.join(_PARTS)}")
    for part in given.parts or _PARTS:
        measure = import_module(f"tests.benchmarks.label_{part}").measure  # late, to stay small: see shared.py
        write_section(f"label-{part}", measure(given.small), given.output)


if __name__ == "__main__":
    main()

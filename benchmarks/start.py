"""Benchmarks of a student's initial weights: `make bench-start`.

    python -m benchmarks.start                    # layers and widths, into docs/benchmarks.md
    python -m benchmarks.start --small --output /tmp/try.md

`--small` is a quick trial of the scripts; its figures mean nothing.
"""

from benchmarks.shared import run_parts

if __name__ == "__main__":
    run_parts("start", ("pruning",), "Measure what the choice of a start is worth.")

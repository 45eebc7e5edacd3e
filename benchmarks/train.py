"""Benchmarks of training: `make bench-train`.

    python -m benchmarks.train                    # all three parts, into docs/benchmarks.md
    python -m benchmarks.train objectives         # only one part: objectives, speed, memory
    python -m benchmarks.train speed --small --output /tmp/try.md

Each part prints its tables and writes its section. `--small` is a quick trial of the scripts; its figures mean nothing.
"""

from benchmarks.shared import run_parts

if __name__ == "__main__":
    run_parts("train", ("objectives", "speed", "memory"), "Measure what training promises.")

"""What training promises, measured: `make bench-train`.

    python -m tests.benchmarks.train                    # all three parts, into docs/benchmarks.md
    python -m tests.benchmarks.train objectives         # or speed, memory: that part alone
    python -m tests.benchmarks.train speed --small --output /tmp/try.md

Each part prints its tables and writes its own section. `--small` tries the scripts out with figures that mean nothing.
"""

from tests.benchmarks.shared import run_parts

if __name__ == "__main__":
    run_parts("train", ("objectives", "speed", "memory"), "Measure what training promises.")

"""What training promises, measured: `make bench-train`.

    python -m benchmarks.train                    # all three parts, into docs/benchmarks.md
    python -m benchmarks.train objectives         # or speed, memory: that part alone
    python -m benchmarks.train speed --small --output /tmp/try.md

Each part prints its tables and writes its own section. `--small` tries the scripts out with figures that mean nothing.
"""

from benchmarks.shared import run_parts

if __name__ == "__main__":
    run_parts("train", ("objectives", "speed", "memory"), "Measure what training promises.")

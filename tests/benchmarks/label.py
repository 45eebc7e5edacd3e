"""What labelling promises, measured: `make bench-label`.

    python -m tests.benchmarks.label                    # all five parts, into docs/benchmarks.md
    python -m tests.benchmarks.label throughput         # or layers, memory, kills, growing: that part alone
    python -m tests.benchmarks.label kills --small --output /tmp/try.md

Each part prints its tables and writes its own section. `--small` tries the scripts out with figures that mean nothing.
"""

from tests.benchmarks.shared import run_parts

if __name__ == "__main__":
    run_parts("label", ("throughput", "layers", "memory", "kills", "growing"), "Measure what labelling promises.")

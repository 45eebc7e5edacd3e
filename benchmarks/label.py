"""What labelling promises, measured: `make bench-label`.

    python -m benchmarks.label                    # all five parts, into docs/benchmarks.md
    python -m benchmarks.label throughput         # or layers, memory, kills, growing: that part alone
    python -m benchmarks.label kills --small --output /tmp/try.md

Each part prints its tables and writes its own section. `--small` tries the scripts out with figures that mean nothing.
"""

from benchmarks.shared import run_parts

if __name__ == "__main__":
    run_parts("label", ("throughput", "layers", "memory", "kills", "growing"), "Measure what labelling promises.")

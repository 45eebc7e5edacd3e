"""Benchmarks of labelling: `make bench-label`.

    python -m benchmarks.label                    # all five parts, into docs/benchmarks.md
    python -m benchmarks.label throughput         # only one part: throughput, layers, memory, kills, growing
    python -m benchmarks.label kills --small --output /tmp/try.md

Each part prints its tables and writes its section. `--small` is a quick trial of the scripts; its figures mean nothing.
"""

from benchmarks.shared import run_parts

if __name__ == "__main__":
    run_parts("label", ("throughput", "layers", "memory", "kills", "growing"), "Measure what labelling promises.")

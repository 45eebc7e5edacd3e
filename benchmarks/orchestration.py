"""Benchmarks of the overhead of Prefect and Ray in labelling: `make bench-flows`.

    python -m benchmarks.orchestration                 # both parts, into docs/benchmarks.md
    python -m benchmarks.orchestration shards          # only one part: shards, workers

Each part prints its tables and writes its section. `--small` is a quick trial of the scripts; its figures mean nothing.
"""

from benchmarks.shared import run_parts

if __name__ == "__main__":
    run_parts("orchestration", ("shards", "workers"), "Measure what Prefect and Ray add to labelling.")

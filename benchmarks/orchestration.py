"""What Prefect and Ray add to labelling, measured: `make bench-flows`.

    python -m benchmarks.orchestration                 # both parts, into docs/benchmarks.md
    python -m benchmarks.orchestration shards          # or workers: that part alone

Each part prints its tables and writes its own section. `--small` tries the scripts out with figures that mean nothing.
"""

from benchmarks.shared import run_parts

if __name__ == "__main__":
    run_parts("orchestration", ("shards", "workers"), "Measure what Prefect and Ray add to labelling.")

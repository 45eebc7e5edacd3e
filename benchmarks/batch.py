"""Benchmarks of batch jobs: `make bench-batch`.

python -m benchmarks.batch                # both parts, into docs/benchmarks.md
python -m benchmarks.batch kills          # 50 kills over 20 jobs with 50,000 rows
python -m benchmarks.batch size           # a job of 50,000 rows; 1,000,000 rows in 20 jobs
python -m benchmarks.batch --small --output /tmp/try.md
"""

from benchmarks.shared import run_parts

if __name__ == "__main__":
    run_parts("batch", ("kills", "size"), "Measure labelling by batch jobs.")

"""Benchmarks of on-policy distillation: `make bench-on-policy`.

    python -m benchmarks.on_policy                # both parts, into docs/benchmarks.md
    python -m benchmarks.on_policy rounds         # rounds beside more epochs, TRL, and a student of the stored rounds
    python -m benchmarks.on_policy kills          # 20 kills in a run of four rounds
    python -m benchmarks.on_policy --small --output /tmp/try.md

`--small` is a quick trial of the scripts; its figures mean nothing. TRL needs its own virtual environment, which the
Makefile makes: `make .venv-trl/.installed`.
"""

from benchmarks.shared import run_parts

if __name__ == "__main__":
    run_parts("on_policy", ("rounds", "kills"), "Measure on-policy distillation in rounds.")

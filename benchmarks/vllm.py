"""Benchmarks of the vLLM teacher: `make bench-vllm`.

python -m benchmarks.vllm                # all three parts, into docs/benchmarks.md
python -m benchmarks.vllm label          # only one part: decode, label, batch
"""

from benchmarks.shared import run_parts

if __name__ == "__main__":
    run_parts("vllm", ("decode", "label", "batch"), "Measure what the vLLM teacher promises.")

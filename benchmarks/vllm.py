"""What the vLLM teacher promises, measured: `make bench-vllm`.

python -m benchmarks.vllm                # all three parts, into docs/benchmarks.md
python -m benchmarks.vllm label          # or decode, batch: that part alone
"""

from benchmarks.shared import run_parts

if __name__ == "__main__":
    run_parts("vllm", ("decode", "label", "batch"), "Measure what the vLLM teacher promises.")

"""How many words a model says in a second on one core: `python -m tests.benchmarks.t5_speed FOLDER WORDS.jsonl`.

A process of its own, for t5.py. The words are read in batches of 64 in their own order; the best of three rounds counts,
since whatever else runs on the machine only makes it slower.
"""

from __future__ import annotations

import json
import sys
import time
from itertools import islice
from pathlib import Path

import torch

from pipeline.generation import generate
from pipeline.language_model import encode_prompt, load_language_model
from pipeline.records import Message

WORDS = 1024
BATCH = 64
ROUNDS = 3


def main(folder: Path, words: Path) -> None:
    torch.set_num_threads(1)
    lm = load_language_model(folder, device="cpu")
    with words.open(encoding="utf-8") as lines:
        texts = [json.loads(line)["word"] for line in islice(lines, 0, None, 97)][:WORDS]
    prompts = [encode_prompt(lm.tokenizer, [Message("user", text)]) for text in texts]
    batches = [prompts[start : start + BATCH] for start in range(0, len(prompts), BATCH)]
    generate(lm, batches[0], max_tokens=32)  # warms up
    seconds = []
    for _ in range(ROUNDS):
        began = time.perf_counter()
        for batch in batches:
            generate(lm, batch, max_tokens=32)
        seconds.append(time.perf_counter() - began)
    print(json.dumps({"words_per_second": len(prompts) / min(seconds)}))


if __name__ == "__main__":
    main(Path(sys.argv[1]), Path(sys.argv[2]))

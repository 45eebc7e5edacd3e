"""The distilabel client: one `TextGeneration` step with an `OpenAILLM` in a local pipeline, cache off.

- A batch is sent at once and ends with its last answer, so the batch size is the number of requests in flight. Larger
  batches (256, 500, 1000) and two replicas of the step were not measurably faster.
- The newest `openai` client that pip chooses: with the 1.x version current at its release, distilabel was half as fast.
- beautifulsoup4 is not installed: with it, distilabel would fetch citations from the network.

Timed: from `pipeline.run()` until it returns its dataset, including the start of worker processes (about three seconds).
"""

from __future__ import annotations

import os
import time

from benchmarks.asking import MAX_TOKENS, MODEL, TEMPERATURE, task_from_arguments, tell


def main() -> None:
    task = task_from_arguments()
    os.environ |= {
        "HOME": str(task.folder),
        "DISTILABEL_CACHE_DIR": str(task.folder / "distilabel"),
        "HF_HOME": str(task.folder / "huggingface"),
        "HF_HUB_OFFLINE": "1",
    }
    from distilabel.models import OpenAILLM
    from distilabel.pipeline import Pipeline
    from distilabel.steps import LoadDataFromDicts
    from distilabel.steps.tasks import TextGeneration

    with Pipeline("benchmark", cache_dir=task.folder) as pipeline:
        rows = LoadDataFromDicts(data=[{"instruction": prompt} for prompt in task.prompts], batch_size=task.concurrency)
        answer = TextGeneration(
            llm=OpenAILLM(
                model=MODEL,
                base_url=task.base_url,
                api_key="none",
                generation_kwargs={"temperature": TEMPERATURE, "max_new_tokens": MAX_TOKENS},
            ),
            input_batch_size=task.concurrency,
        )
        rows >> answer
    began = time.perf_counter()
    answers = pipeline.run(use_cache=False)["default"]["train"]
    seconds = time.perf_counter() - began
    tell(rows=len(answers), seconds=seconds, packages=["distilabel", "openai"])


if __name__ == "__main__":
    main()

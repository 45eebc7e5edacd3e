"""The curator client, with the fastest settings found that keep its default durability: one line in a file per answer.

- The `openai` backend, which is curator's own aiohttp client. (`litellm` was half as fast.)
- Rate limits so high that it never waits.
- A plain progress line instead of the live panel.
- Telemetry and the hosted viewer off; litellm's price list and tokenizer from its package, so nothing is downloaded.

Timed: from `llm(prompts)` until it returns its dataset. Creating the `LLM` object is not included.
"""

from __future__ import annotations

import os
import time

from benchmarks.asking import MAX_TOKENS, MODEL, TEMPERATURE, task_from_arguments, tell

_NEVER_REACHED = 10**10  # rate limits per minute


def main() -> None:
    task = task_from_arguments()
    os.environ |= {
        "HOME": str(task.folder),
        "CURATOR_CACHE_DIR": str(task.folder / "curator"),
        "CURATOR_DISABLE_RICH_DISPLAY": "1",
        "HF_HOME": str(task.folder / "huggingface"),
        "HF_HUB_OFFLINE": "1",
        "LITELLM_LOCAL_MODEL_COST_MAP": "True",
        "OPENAI_API_KEY": "none",
        "TELEMETRY_ENABLED": "false",
    }
    import litellm.litellm_core_utils.default_encoding  # noqa: F401  makes tiktoken read litellm's copy
    from bespokelabs import curator

    prompts = task.prompts
    llm = curator.LLM(
        model_name=MODEL,
        backend="openai",
        generation_params={"temperature": TEMPERATURE, "max_tokens": MAX_TOKENS},
        backend_params={
            "base_url": task.base_url,
            "max_concurrent_requests": task.concurrency,
            "max_requests_per_minute": _NEVER_REACHED,
            "max_tokens_per_minute": _NEVER_REACHED,
        },
    )
    began = time.perf_counter()
    answers = llm(prompts).dataset
    seconds = time.perf_counter() - began
    tell(rows=len(answers), seconds=seconds, packages=["bespokelabs-curator", "aiohttp"])


if __name__ == "__main__":
    main()

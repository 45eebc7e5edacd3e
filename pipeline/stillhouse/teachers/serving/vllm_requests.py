"""The bodies that are posted to vLLM's /v1/completions; vllm_answers.py parses the responses."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from stillhouse.recipe.label import SamplingSettings

_NEUTRAL_SAMPLING = {  # sample as the recipe says, not as the model's generation_config.json says
    "top_k": -1,
    "min_p": 0.0,
    "repetition_penalty": 1.0,
    "presence_penalty": 0.0,
    "frequency_penalty": 0.0,
}


def generation_body(model: str, prompt: Sequence[int], sampling: SamplingSettings, k: int | None) -> Mapping[str, Any]:
    """Return the body of a request for a completion; `k` is the number of log-probabilities per token, if any."""
    body: dict[str, Any] = {
        "model": model,
        "prompt": prompt,
        "max_tokens": sampling.max_tokens,
        "temperature": sampling.temperature,
        "top_p": sampling.top_p,
        **_NEUTRAL_SAMPLING,
        "return_token_ids": True,
        "return_tokens_as_token_ids": True,
    }
    # No seed: with a temperature it kills the engine on a CPU, and it would not make the text reproducible elsewhere.
    return body if k is None else body | {"logprobs": k}


def scoring_body(model: str, prompt: Sequence[int], forced: Sequence[int], k: int | None) -> Mapping[str, Any]:
    """Return the body of a request for the log-probabilities of the `forced` tokens after a prompt."""
    return {
        "model": model,
        "prompt": [*prompt, *forced],
        "echo": True,
        "max_tokens": 0,
        "temperature": 0.0,
        "logprobs": k,
        "return_token_ids": True,
        "return_tokens_as_token_ids": True,
    }

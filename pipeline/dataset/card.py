"""README.md of a dataset version: a Hugging Face dataset card, so that the folder opens and explains itself anywhere."""

from __future__ import annotations

from pathlib import Path

import yaml

from pipeline.dataset.manifest import Manifest
from pipeline.durable import write_atomically

_BODY = """# {label}

{rows} completions by the teacher `{teacher}`, made with Stillhouse {stillhouse}.

```python
from datasets import load_dataset
dataset = load_dataset("path/to/this/folder")
```

| | |
| --- | --- |
| Prompts | {prompts} |
| Completions | {splits} |
| Rejected | {rejected} |
| Mode | {mode} |
| Sampling | {sampling} |
| Soft labels | {soft} |
| Tokens | {prompt_tokens} in prompts, {completion_tokens} in completions |
| Cost | {cost} |
| Made | {created_at} |

Each row is one conversation (`prompt`) with the teacher's answer (`completion`). {soft_columns}
Rejected prompts are kept in `rejected/`, each with its `stage`, `reason` and `detail`. `manifest.json` names the teacher,
its tokenizer and chat template by hash, holds the recipe, and lists every file with its checksum.
"""

_SOFT_COLUMNS = """`prompt_token_ids` and `completion_token_ids`
are the exact tokens; at every completion position `top_token_ids` and `top_logprobs` hold the teacher's most likely tokens
(natural logarithms, temperature 1, normalised over the whole vocabulary), and `tail_logprob` the logarithm of all other
tokens' mass.
"""


def write_card(folder: Path, manifest: Manifest) -> None:
    """Write the card of a version."""
    write_atomically(folder / "README.md", render_card(manifest).encode())


def render_card(manifest: Manifest) -> str:
    """The card's text."""
    data_files = [{"split": split, "path": f"data/{split}-*.parquet"} for split in manifest.rows]
    front = {
        "pretty_name": manifest.label,
        "tags": ["distillation", "synthetic", "stillhouse"],
        "task_categories": ["text-generation"],
        "configs": [{"config_name": "default", "data_files": data_files}],
    }
    totals = manifest.totals
    soft = manifest.soft
    body = _BODY.format(
        label=manifest.label,
        rows=sum(manifest.rows.values()),
        teacher=manifest.teacher.model,
        stillhouse=manifest.stillhouse,
        prompts=manifest.prompts,
        splits=_counts(manifest.rows),
        rejected=_counts(manifest.rejected),
        mode=manifest.mode or "not known",
        sampling=", ".join(f"{key} {value}" for key, value in manifest.sampling.model_dump().items())
        if manifest.sampling
        else "not known",
        soft="none, text only" if soft is None else f"{soft.encoding}, k = {soft.k}",
        prompt_tokens=f"{totals.prompt_tokens:,}",
        completion_tokens=f"{totals.completion_tokens:,}",
        cost="not known" if totals.cost_usd is None else f"${totals.cost_usd:.4f}",
        created_at=manifest.created_at,
        soft_columns=_SOFT_COLUMNS if soft else "",
    )
    return f"---\n{yaml.safe_dump(front, sort_keys=False)}---\n\n{body}"


def _counts(counts: dict[str, int]) -> str:
    return ", ".join(f"{count} {name}" for name, count in counts.items()) or "none"

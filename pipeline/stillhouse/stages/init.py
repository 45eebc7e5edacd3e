"""Write a first recipe for a user's own file: what `stillhouse init` does.

    >>> written = init_recipe(Path("task"), Path("words.jsonl"), teacher="api", prompt_column="word")
    >>> written.recipe, written.columns
    (PosixPath('task/recipe.yaml'), ('word', 'reference'))

The recipe and the template are files to be edited. The recipe has comments, and it is loaded once before anything is
written.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import Any, Literal, get_args

import jinja2

from stillhouse.errors import PromptError, UsageError
from stillhouse.inputs.cells import NotText, cell_text
from stillhouse.inputs.yaml_text import parse_yaml
from stillhouse.prompts.rows import source_rows
from stillhouse.recipe.prompts import PromptSettings
from stillhouse.recipe.recipe import recipe_from
from stillhouse.settings import nearest
from stillhouse.storage.durable import write_atomically

TeacherChoice = Literal["demo", "api", "vllm"]
_ROWS_LOOKED_AT = 100
_COMMENTS = 44  # the column where comments of the recipe begin
_PROMPT_COLUMNS = ("prompt", "question", "instruction", "query", "input", "text", "sentence", "document", "article")
_REFERENCE_COLUMNS = ("reference", "answer", "output", "response", "completion", "label", "summary", "target")
_READY_COLUMNS = ("prompt", "messages")  # columns that need no template


@dataclass(frozen=True)
class Written:
    """What `init_recipe` wrote."""

    recipe: Path
    template: Path | None  # None: the rows are prompts already
    columns: tuple[str, ...]  # of the data
    prompt_column: str
    reference_column: str | None


def init_recipe(
    folder: Path,
    data: Path,
    *,
    teacher: str = "demo",
    prompt_column: str | None = None,
    reference_column: str | None = None,
    system: str | None = None,
) -> Written:
    """Write `recipe.yaml` and, where the rows need one, `prompt.j2` into a folder.

    Args:
        folder: where to; it is created where it does not exist.
        data: a .csv, .tsv, .jsonl or .parquet file, as the working folder names it.
        teacher: "demo" (a small model in this process), "api" (an OpenAI-compatible API) or "vllm" (a server on a GPU).
        prompt_column: the column that is asked about; None: the first of the usual names that the file has, or the first
            column of text.
        reference_column: the column with gold answers; None: the first of the usual names, or none.
        system: the system message before every prompt; None: the demo teacher is asked for short answers, another one
            gets none.

    Raises:
        UsageError: the teacher is unknown, a column is missing, or a file that would be written exists already.
        PromptError: the data cannot be read.
    """
    if teacher not in get_args(TeacherChoice):
        raise UsageError(
            "there is no such teacher",
            setting="--teacher",
            value=teacher,
            fix=nearest(teacher, get_args(TeacherChoice)),
        )
    rows = list(islice(source_rows(PromptSettings(source=str(data))), _ROWS_LOOKED_AT))
    if not rows:
        raise PromptError(f"{data} has no rows", fix="put one row for each prompt below the column names")
    columns = tuple(dict.fromkeys(name for row in rows for name in row))
    asked = _column(prompt_column, "--prompt-column", columns) or _asked_column(rows, columns, data)
    wanted = _column(reference_column, "--reference-column", columns)
    reference = wanted or next((name for name in _named(columns, _REFERENCE_COLUMNS) if name != asked), None)
    ready = prompt_column is None and asked in _READY_COLUMNS
    name = re.sub(r"[^a-z0-9-]+", "-", data.stem.lower()).strip("-") or "my-task"
    recipe, template = folder / "recipe.yaml", None if ready else folder / "prompt.j2"
    variable = asked if asked.isidentifier() else "question"
    values = {
        "name": name,
        "source": str(data),
        "template": str(template) if template else None,
        "columns": {variable: asked} if template and variable != asked else None,
        "reference": reference,
        "system": _default_system(teacher, asked) if system is None else system,
        "teacher": teacher,
        "recipe": str(recipe),
    }
    text = re.sub(
        r"(?m)^(.*\S) {2,}# (.*)$", lambda line: f"{line[1]:<{_COMMENTS - 2}}  # {line[2]}", _render(_RECIPE, values)
    )
    recipe_from(parse_yaml(text), origin=str(recipe))
    others = [one for one in columns if one not in (asked, reference)]
    files = {recipe: text} | ({template: _render(_TEMPLATE, {"asked": variable, "others": others})} if template else {})
    for file in files:
        if file.exists():
            raise UsageError(
                f"{file} exists already", fix=f"remove it, or name another folder: stillhouse init {data} FOLDER"
            )
    folder.mkdir(parents=True, exist_ok=True)
    for file, content in files.items():
        write_atomically(file, content.encode())
    return Written(recipe, template, columns, asked, reference)


def _default_system(teacher: str, asked: str) -> str | None:
    """Without it, most of the demo teacher's answers are cut off; conversations may have a system message of their own."""
    return "You answer in one short sentence." if teacher == "demo" and asked != "messages" else None


def _column(given: str | None, option: str, columns: Sequence[str]) -> str | None:
    if given is not None and given not in columns:
        raise UsageError(
            "the file does not have this column", setting=option, value=given, fix=nearest(given, list(columns))
        )
    return given


def _named(columns: Sequence[str], usual: Sequence[str]) -> Iterator[str]:
    """Columns with one of the usual names, whatever their case."""
    lower = {name.lower().strip(): name for name in columns}
    return (lower[name] for name in usual if name in lower)


def _asked_column(rows: Sequence[Mapping[str, Any]], columns: Sequence[str], data: Path) -> str:
    for name in ("messages", *_named(columns, _PROMPT_COLUMNS)):
        if name in columns:
            return name
    for name in columns:
        if all(isinstance(row.get(name), str | None) for row in rows) and any(_text(row.get(name)) for row in rows):
            return name
    raise PromptError(
        f"{data} has no column of text", fix="name the column to ask about with --prompt-column, or give another file"
    )


def _text(cell: Any) -> str:
    try:
        return cell_text(cell) or ""
    except NotText:
        return ""


def _render(template: str, values: Mapping[str, Any]) -> str:
    environment = jinja2.Environment(trim_blocks=True, lstrip_blocks=True, keep_trailing_newline=True, autoescape=False)
    environment.filters["yaml"] = _scalar
    return environment.from_string(template).render(values)


def _scalar(text: str) -> str:
    """A text as YAML: quoted where it needs to be."""
    return text if re.fullmatch(r"[A-Za-z_./][\w./-]*", text) else json.dumps(text, ensure_ascii=False)


_TEMPLATE = """\
{# The user's message of one row: a Jinja2 template whose variables are the row's columns. Write the task around them. #}
{% raw %}{{ {% endraw %}{{ asked }}{% raw %} }}{% endraw %}

{% if others %}
{% raw %}{# {% endraw %}Other columns: {{ others | join(", ") }}{% raw %} #}{% endraw %}

{% endif %}
"""

_RECIPE = """\
# {{ source }}: a teacher answers its prompts, and a small student learns to.
#   stillhouse plan {{ recipe }}      # requests, tokens and dollars; sends nothing
#   stillhouse run {{ recipe }}       # labels, trains, reports; run it again after any stop, and it resumes
name: {{ name }}
prompts:
  source: {{ source | yaml }}
{% if template %}
  template: {{ template | yaml }}       # makes a row's columns the user's message
{% endif %}
{% if columns %}
  columns:                                  # the template's name: the column's
{% for ours, theirs in columns.items() %}
    {{ ours }}: {{ theirs | yaml }}
{% endfor %}
{% endif %}
{% if reference %}
  reference: {{ reference | yaml }}              # the column with gold answers, for the report's metrics
{% endif %}
{% if system %}
  system: {{ system | yaml }}      # the system message before every prompt
{% else %}
  # system: You answer in one sentence.     # a system message before every prompt
{% endif %}
  # limit: 100                              # try the first rows before you pay for all
  holdout: 0.1                              # share of prompts, chosen by content, that is kept for the report
{% if teacher == "demo" %}
teacher:                                    # `stillhouse teacher fetch-demo` downloads it; a hub id or a folder works too
  kind: transformers
  model: data/models/smollm2-135m-instruct
  options: {batch_size: 32}
label:
  sampling: {temperature: 0.3, max_tokens: 128}
  soft: {encoding: top-k, k: 32}            # the teacher's distribution at every token
  max_rejected: 0.3                         # a run with more ends with status 3; this small teacher often repeats itself
quality:                                    # rejected completions are kept, with the reason
  - {kind: finish-reason}                   # an answer that was cut off
  - {kind: repetition}                      # an answer that repeats itself
{% elif teacher == "api" %}
teacher:                                    # any OpenAI-compatible API; the key is read from OPENAI_API_KEY
  kind: openai
  model: gpt-4o-mini
  # options: {base_url: "http://127.0.0.1:8000/v1"}
  # price: {input_usd_per_million: 0.15, output_usd_per_million: 0.60}   # where the price list does not know the model
label:
  sampling: {temperature: 0.7, max_tokens: 256}
  concurrency: 32                           # requests in flight
  budget_usd: 1.00                          # never exceeded, however often the run is resumed
quality:                                    # rejected completions are kept, with the reason
  - {kind: finish-reason}                   # an answer that was cut off
  - {kind: refusal}                         # "I'm sorry, but I can't"
{% else %}
teacher:                                    # a vLLM server, started for the run; `pip install vllm` where the GPU is
  kind: vllm
  model: Qwen/Qwen3-8B
  options:
    serve: {dtype: bfloat16, max_model_len: 4096}    # or base_urls: [http://gpu-1:8000/v1] for one that runs already
label:
  sampling: {temperature: 0.7, max_tokens: 256}
  soft: {encoding: top-k, k: 20}            # the teacher's distribution at every token
  concurrency: 128                          # requests in flight
quality:                                    # rejected completions are kept, with the reason
  - {kind: finish-reason}                   # an answer that was cut off
  - {kind: repetition}                      # an answer that repeats itself
{% endif %}
dataset: {root: data/labels, name: {{ name }}}
{% if teacher == "demo" %}
student:
  init: {from: teacher, layers: 22, vocabulary: used}   # the 22 of its 30 layers that matter most, and the tokens in use
  mode: white-box                           # learns the teacher's distribution, not only its text
  loss: {kind: forward-kl, weight: 1.0, cross_entropy_weight: 0.1}
  train: {num_train_epochs: 2, per_device_train_batch_size: 8, learning_rate: 5.0e-4, warmup_steps: 0.1}
{% elif teacher == "api" %}
student:
  init: {model: data/models/smollm2-135m-instruct}      # `stillhouse teacher fetch-demo`; or any hub id
  mode: black-box                           # an API gives text: the student learns by cross-entropy on it
  train: {num_train_epochs: 2, per_device_train_batch_size: 8, learning_rate: 2.0e-5, warmup_steps: 0.1}
{% else %}
student:
  init: {model: Qwen/Qwen3-0.6B}            # shares the teacher's tokenizer, as soft labels need
  mode: white-box                           # learns the teacher's distribution, not only its text
  loss: {kind: forward-kl, weight: 1.0, cross_entropy_weight: 0.1}
  train: {num_train_epochs: 2, per_device_train_batch_size: 8, learning_rate: 2.0e-5, warmup_steps: 0.1, bf16: true}
{% endif %}
evaluate:
  baselines: [untrained]                    # beside teacher and student in the report
{% if reference %}
  metrics: [{kind: token-f1}]      # of the answers against the gold answers
{% endif %}
"""

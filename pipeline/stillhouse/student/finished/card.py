"""README.md of a student: a Hugging Face model card, so that the folder documents itself wherever it is copied.

    write_cards(folder.path, card, recipe, manifest)             # for a student that was just trained
    write_cards(folder.path, card, recipe, manifest, figures)    # again, with the figures of an evaluation

It is ready to publish: the teacher, the rows, the loss and the settings, the measurements, and the limits of the figures.
The text is a function of `CardFacts` alone; its layout is card.md.j2. It is always written whole: figures appear only with
the key of the evaluation that measured them, and a student that is trained again has none.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from enum import Enum
from functools import cache
from importlib.metadata import PackageNotFoundError, version
from importlib.resources import files as package_files
from pathlib import Path
from platform import python_version
from typing import Any

import jinja2
import yaml

import stillhouse
from stillhouse.dataset.card import describe_teacher, settings_line
from stillhouse.dataset.manifest import Manifest
from stillhouse.errors import RecipeError
from stillhouse.formatting import count_in_words, escape_table_cell, megabytes_in_words, without_local_folders
from stillhouse.inputs.plain_json import to_json
from stillhouse.models.files import ModelFiles
from stillhouse.models.find import has_local_files
from stillhouse.recipe.recipe import Recipe
from stillhouse.recipe.student import LossSettings, StudentSettings
from stillhouse.recipe.student_init import InitSettings
from stillhouse.records import TeacherIdentity
from stillhouse.storage.durable import write_atomically
from stillhouse.student.finished.folder import INT8, StudentCard
from stillhouse.student.start.descriptions import start_in_words
from stillhouse.student.start.record import Start, read_start

README = "README.md"
_HUB_ID = re.compile(r"[A-Za-z0-9][\w.-]*/[A-Za-z0-9][\w.-]*")
_LIBRARIES = ("torch", "transformers", "accelerate", "peft")
_REPORTED_ARGUMENTS = (
    *("num_train_epochs", "max_steps", "per_device_train_batch_size", "gradient_accumulation_steps", "world_size"),
    *("learning_rate", "lr_scheduler_type", "warmup_steps", "weight_decay", "max_grad_norm", "optim"),
    *("bf16", "fp16", "seed"),
)


@dataclass(frozen=True)
class Figures:
    """The results of an evaluation, as the report shows them."""

    key: str  # of the evaluation
    created_at: str  # ISO 8601, UTC
    machine: str
    table: tuple[tuple[str, ...], ...]  # headers, then one model per row, its name first
    notes: tuple[str, ...]  # caveats for interpreting the figures
    own: str | None = None  # the student's name in the table; None: its role
    answers: tuple[tuple[str, ...], ...] = ()  # statistics of the answers, in the form of `table`
    warnings: Mapping[str, str] = field(default_factory=dict)  # problems of a model, by its name in the table


@dataclass(frozen=True)
class CardFacts:
    """All facts on a student's card."""

    card: StudentCard
    teacher: TeacherIdentity
    student: StudentSettings
    loss: LossSettings  # of its last training
    manifest: Manifest | None  # of the dataset; None for a student that is not trained
    base_models: tuple[str, ...]  # hub ids
    prompts_from: str | None  # the hub data set of the prompts
    chat: bool  # whether its tokenizer has a chat template
    encoder_decoder: bool = False
    task_prefix: str = ""  # prefix of its prompts
    figures: Figures | None = None
    start: Start | None = None  # the parts that it was made of


def write_cards(
    folder: Path, card: StudentCard, recipe: Recipe, manifest: Manifest | None, figures: Figures | None = None
) -> None:
    """Write the card of the student in `folder`, and that of its quantised copy, each atomically."""
    facts = card_facts(folder, card, recipe, manifest, figures)
    _write(folder / README, render_card(facts))
    if (folder / INT8).is_dir():
        _write(folder / INT8 / README, render_card(facts, int8=True))


def card_facts(
    folder: Path, card: StudentCard, recipe: Recipe, manifest: Manifest | None, figures: Figures | None = None
) -> CardFacts:
    """Collect the facts about the student in `folder`."""
    if recipe.student is None:
        raise RecipeError(f"recipe {recipe.name} has no student to write a card for", setting="student")
    files = ModelFiles(str(folder), folder)
    requested = TeacherIdentity(recipe.teacher.kind, recipe.teacher.model, recipe.teacher.revision)
    return CardFacts(
        card=card,
        teacher=manifest.teacher if manifest else requested,
        student=recipe.student,
        loss=_loss(recipe, card),
        manifest=manifest,
        base_models=_base_models(recipe, recipe.student.init),
        prompts_from=_hub_id(recipe.prompts.source),
        chat=files.chat_template_sha256 is not None,
        encoder_decoder=files.is_encoder_decoder,
        task_prefix=recipe.teacher.task_prefix or "",
        figures=figures,
        start=read_start(folder),
    )


def render_card(facts: CardFacts, *, int8: bool = False) -> str:
    """Return the card's text; with `int8` that of the quantised copy."""
    front = yaml.safe_dump(_front_matter(facts, int8=int8), sort_keys=False, allow_unicode=True)
    body = _template().render(
        facts=facts,
        card=facts.card,
        int8=int8,
        role=_role(facts.card, int8=int8),
        named=_named(facts, int8=int8),
        teacher=describe_teacher(facts.teacher),
        start=start_in_words(facts.student.init, encoder_decoder=facts.encoder_decoder, start=facts.start),
        loss=formula(facts.loss, facts.card.variant),
        loss_options=settings_line(facts.loss.options),
        settings=_training(facts),
    )
    return f"---\n{front}---\n\n{body.rstrip()}\n"


@cache
def _template() -> jinja2.Template:
    environment = jinja2.Environment(undefined=jinja2.StrictUndefined, trim_blocks=True, lstrip_blocks=True)
    environment.filters |= {
        "cell": escape_table_cell,
        "public": without_local_folders,
        "count": count_in_words,
        "size": megabytes_in_words,
        "literal": to_json,
    }
    return environment.from_string(
        package_files("stillhouse.student.finished").joinpath("card.md.j2").read_text("utf-8")
    )


def formula(loss: LossSettings, variant: str) -> str:
    """Return the loss that was minimised as a formula, with its numbers."""
    if variant not in ("white-box", "on-policy"):
        return f"L = cross-entropy({'reference' if variant == 'gold' else 'completion'}, student)"
    terms = []
    if loss.weight:
        at = f"{loss.temperature:g}"
        terms.append(f"{loss.weight:g} * {at}^2 * {loss.kind}(teacher / {at}, student / {at})")
    if loss.cross_entropy_weight:
        terms.append(f"{loss.cross_entropy_weight:g} * cross-entropy(completion, student)")
    return "L = " + " + ".join(terms)


def reported_arguments(arguments: Any) -> dict[str, Any]:
    """Return the training arguments that shape a training most, as plain values.

    Of epochs and steps it has only the limit that applies.
    """
    reported = {name: getattr(arguments, name) for name in _REPORTED_ARGUMENTS}
    reported.pop("num_train_epochs" if reported["max_steps"] > 0 else "max_steps")
    return {name: str(value.value) if isinstance(value, Enum) else value for name, value in reported.items()}


def software_versions() -> dict[str, str]:
    """Return the versions on which a figure or a model depends, without importing the packages."""
    installed = {}
    for name in _LIBRARIES:
        try:
            installed[name] = version(name)
        except PackageNotFoundError:
            continue
    return {"stillhouse": stillhouse.__version__, **installed, "python": python_version()}


# ---------------------------------------------------------------------------------------------------------------- pieces


def _loss(recipe: Recipe, card: StudentCard) -> LossSettings:
    """Return the loss of the student's last training."""
    assert recipe.student is not None
    of_rounds = recipe.on_policy.loss if recipe.on_policy and card.variant == "on-policy" else None
    return of_rounds or recipe.student.loss


def _front_matter(facts: CardFacts, *, int8: bool) -> dict[str, Any]:
    licence = facts.manifest.licence if facts.manifest else None
    role = "teacher" if facts.card.is_teacher else facts.card.variant
    tags = ["distillation", "stillhouse", role, *(["int8", "torchao"] if int8 else [])]
    known: Mapping[str, Any] = {
        "base_model": list(facts.base_models),
        "datasets": [facts.prompts_from] if facts.prompts_from else [],
        "license": licence.lower() if licence else None,
        "library_name": "transformers",
        "pipeline_tag": "text2text-generation" if facts.encoder_decoder else "text-generation",
        "tags": tags,
    }
    return {name: value for name, value in known.items() if value}


def _role(card: StudentCard, *, int8: bool) -> str:
    """Return the student's name in the report, if it has a line there."""
    return "fine-tuned teacher" if card.is_teacher else f"{card.variant} student{', int8' if int8 else ''}"


def _named(facts: CardFacts, *, int8: bool) -> str:
    """Return the student's name in the tables of the figures."""
    if facts.figures is None or facts.figures.own is None:
        return _role(facts.card, int8=int8)
    return f"{facts.figures.own}{', int8' if int8 else ''}"


def _training(facts: CardFacts) -> list[tuple[str, str]]:
    """Return the settings of the training, as name and value."""
    student = facts.student
    ours: dict[str, Any] = {
        "max_length": student.max_length,
        "packing": student.packing,
        "freeze": ", ".join(student.freeze) or None,
        "lora": settings_line(student.lora.model_dump(mode="json")) if student.lora else None,
        "early_stopping": settings_line(student.early_stopping.model_dump()) if student.early_stopping else None,
    }
    settings = facts.card.training | ours
    plain = {name: f"{value:g}" if isinstance(value, float) else value for name, value in settings.items()}
    return [
        (name, escape_table_cell(value)) for name, value in plain.items() if value is not None and value is not False
    ]


def _base_models(recipe: Recipe, init: InitSettings) -> tuple[str, ...]:
    """Return the hub models that a student comes from: the one whose weights it starts from, and its teacher."""
    teacher = recipe.teacher.model if has_local_files(recipe.teacher) else ""
    named = (_hub_id(name) for name in (init.model or "", teacher))
    return tuple(dict.fromkeys(name for name in named if name))


def _hub_id(name: str) -> str | None:
    """Return a name if it is a hub's (owner/name) and not a file or folder of this machine; else None."""
    is_file = Path(name).suffix in {".jsonl", ".parquet"} or Path(name).exists()
    return name if _HUB_ID.fullmatch(name) and not is_file else None


def _write(file: Path, text: str) -> None:
    """Write a card; one with the same text already keeps its modification time."""
    if not file.is_file() or file.read_text("utf-8") != text:
        write_atomically(file, text.encode())

"""The recipe: one YAML file that describes a whole run, as frozen pydantic models.

    recipe = load_recipe("flows/recipes/quickstart.yaml", overrides=["label.sampling.temperature=0"])

An unknown key is an error that names its path and the nearest valid key; contradictory settings are errors too. Nothing is
sent or written before the whole recipe has been validated. A recipe runs no code and contains no secrets.
"""

from __future__ import annotations

import copy
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Literal

from pydantic import ConfigDict, Field, ValidationError, field_validator, model_validator

from stillhouse.errors import RecipeError, UsageError
from stillhouse.inputs.user_files import decode_text
from stillhouse.inputs.yaml_text import YamlError, dump_yaml, parse_yaml
from stillhouse.recipe.evaluate import EvaluateSettings
from stillhouse.recipe.finetune import NAME, FinetuneSettings
from stillhouse.recipe.label import LabelSettings
from stillhouse.recipe.student import StudentSettings
from stillhouse.recipe.sweep import GridPoint, SweepSettings
from stillhouse.settings import Settings, explain
from stillhouse.storage.location import Location, location

VERSION = re.compile(r"v(\d+)")  # of a dataset, as in outputs


class PromptSettings(Settings):
    """Where the prompts come from and which of them are held out."""

    source: str = Field(description="a .jsonl, .csv, .tsv or .parquet file, local or at a URL, or a hub data set's id")
    config: str | None = Field(default=None, description="configuration of a hub data set that has several")
    split: str = Field(default="train", description="of a hub data set")
    template: str | None = Field(default=None, description="a .j2 file; None: the rows have `prompt` or `messages`")
    system: str | None = Field(default=None, description="system message for prompts without one")
    columns: dict[str, str] = Field(default_factory=dict, description="name in the template -> column of the row")
    reference: str | None = Field(
        default=None, description="column with the gold answer; None: `reference`, if it exists"
    )
    last_turn: Literal["refuse", "reference", "continue"] = Field(
        default="refuse", description="how to treat a final assistant turn"
    )
    limit: int | None = Field(default=None, ge=1, description="maximum number of prompts")
    holdout: float = Field(
        default=0.1, ge=0, lt=1, description="share of prompts for validation, chosen by content hash"
    )


class TeacherSettings(Settings):
    """The model that labels. `options` are those of the kind, which checks them."""

    kind: str = Field(description="transformers, vllm, openai, scripted, reference, or a kind of another package")
    model: str = Field(default="", description="a folder, a hub id, or the API's name of the model")
    revision: str | None = Field(default=None, description="revision of a hub model")
    finetune: FinetuneSettings | None = Field(
        default=None, description="fine-tune `model` on the references first; the result labels"
    )
    task_prefix: str | None = Field(
        default=None, description='required start of every prompt; None: as in `model`\'s config; "": none'
    )
    price: PriceSettings | None = Field(default=None, description="None: looked up by model and provider")
    options: dict[str, Any] = Field(default_factory=dict, description="options of this kind, see below")

    @property
    def labelling_model(self) -> str:
        """The folder or hub id of the model that labels: the fine-tuned one, if `finetune` is set."""
        return self.finetune.folder if self.finetune else self.model

    @property
    def labelling_revision(self) -> str | None:
        """The hub revision of the model that labels; None if it is fine-tuned."""
        return None if self.finetune else self.revision

    @model_validator(mode="after")
    def _only_what_has_weights_here_is_fine_tuned(self) -> TeacherSettings:
        if self.finetune is not None and self.kind != "transformers":
            raise ValueError(
                f"finetune is set and kind is {self.kind!r}: only a model in this process is fine-tuned, set kind to "
                "transformers, or take finetune away"
            )
        return self


class PriceSettings(Settings):
    """The teacher's prices, if `genai-prices` lacks them or has wrong ones."""

    input_usd_per_million: float = Field(ge=0, description="prompt tokens")
    output_usd_per_million: float = Field(ge=0, description="completion tokens, reasoning included")


class FilterSettings(Settings):
    """One quality filter; all keys except `kind` are options, which the filter checks."""

    model_config = ConfigDict(frozen=True, extra="allow")

    kind: str = Field(description="the filter; docs/quality.md lists them")

    @property
    def options(self) -> dict[str, Any]:
        return dict(self.model_extra or {})


class DatasetSettings(Settings):
    """The dataset to write or read."""

    root: str = Field(default="data/labels", description="a folder, or a URL such as s3://bucket/labels")
    name: str = Field(pattern=NAME, description="the dataset's name: letters, digits, `.`, `_` and `-`")
    version: int | None = Field(default=None, ge=1, description="version to learn from; None: the newest")
    licence: str | None = Field(default=None, description="for the card: an SPDX identifier such as apache-2.0")
    journal: str | None = Field(
        default=None, description="a local folder; None: next to the versions, or under data/journals if root is a URL"
    )
    when_busy: Literal["leave", "wait"] = Field(
        default="leave", description="what labelling does while another run writes the dataset"
    )
    patience: float = Field(default=3600, gt=0, description="timeout of `wait`, seconds")

    @field_validator("version", mode="before")
    @classmethod
    def _as_it_is_shown(cls, given: Any) -> Any:
        """Accept `v002`, the form in outputs, as 2."""
        named = VERSION.fullmatch(given.strip()) if isinstance(given, str) else None
        return int(named[1]) if named else given

    @model_validator(mode="after")
    def _places_to_write(self) -> DatasetSettings:
        try:
            location(self.root)
        except UsageError as error:
            raise ValueError(f"root: {error}") from None
        if self.journal is not None and "://" in self.journal:
            raise ValueError("journal is a URL: give a folder of this machine, a journal needs a disk")
        return self

    @property
    def gold(self) -> DatasetSettings:
        """The dataset of the same prompts with their references as completions."""
        return self.model_copy(update={"name": f"{self.name}-gold", "version": None})


class Recipe(Settings):
    """All settings of one run, from prompts to report."""

    name: str = Field(
        pattern=NAME, description="the run's name: students are in <students>/<name>, the report in <reports>/<name>"
    )
    seed: int = Field(default=0, ge=0, description="seed of every random choice")
    prompts: PromptSettings = Field(description="where prompts come from")
    references: PromptSettings | None = Field(
        default=None, description="prompts whose references gold models learn; None: `prompts`"
    )
    teacher: TeacherSettings = Field(description="the model that labels")
    label: LabelSettings = Field(default=LabelSettings(), description="how the teacher is queried")
    quality: tuple[FilterSettings, ...] = Field(
        default=(), description="filters, applied in order; a rejected completion is stored with its reason"
    )
    dataset: DatasetSettings = Field(description="the dataset to write and to learn from")
    student: StudentSettings | None = Field(default=None, description="the student to train; None: label only")
    students: str = Field(default="data/students", description="folder for students: <students>/<name>")
    evaluate: EvaluateSettings = Field(default=EvaluateSettings(), description="how teacher and students are measured")
    sweep: SweepSettings | None = Field(
        default=None, description="train several students; `student` has their common settings"
    )

    @model_validator(mode="before")
    @classmethod
    def _references_are_as_prompts(cls, given: Any) -> Any:
        """Fill in the keys that `references` leaves out, as in {limit: 5000}, from `prompts`."""
        if not isinstance(given, Mapping) or not isinstance(given.get("references"), Mapping):
            return given
        prompts = given.get("prompts")
        return {**given, "references": {**(prompts if isinstance(prompts, Mapping) else {}), **given["references"]}}

    @model_validator(mode="after")
    def _held_out_is_held_out_for_all(self) -> Recipe:
        if self.references is not None and self.references.holdout != self.prompts.holdout:
            raise ValueError(
                f"references.holdout is {self.references.holdout} and prompts.holdout {self.prompts.holdout}: what is "
                "held out must not be learnt from, leave references.holdout out"
            )
        return self

    @model_validator(mode="before")
    @classmethod
    def _a_fine_tuned_teacher_has_a_name(cls, given: Any) -> Any:
        """Fill in the recipe's name and seed if `teacher.finetune` has none."""
        teacher = given.get("teacher") if isinstance(given, Mapping) else None
        settings = teacher.get("finetune") if isinstance(teacher, Mapping) else None
        if not isinstance(teacher, Mapping) or not isinstance(settings, Mapping):
            return given
        own = {"name": given.get("name"), "seed": given.get("seed", 0)}
        named = {**settings, **{key: value for key, value in own.items() if settings.get(key) is None}}
        return {**given, "teacher": {**teacher, "finetune": named}}

    @model_validator(mode="after")
    def _teacher_and_student_lie_apart(self) -> Recipe:
        tuned = self.teacher.finetune
        if tuned and Path(tuned.folder).parent == Path(self.students) / self.name:
            raise ValueError(
                f"teacher.finetune.root is {tuned.root!r} and its name {tuned.name!r}, where the students lie: set one of "
                "the two to another"
            )
        return self

    @property
    def gold_prompts(self) -> PromptSettings:
        """The prompts whose references a gold student or a fine-tuned teacher learns."""
        return self.references or self.prompts

    @property
    def needs_gold(self) -> bool:
        """Whether a model of the recipe (teacher, student or baseline) learns from the references."""
        if self.teacher.finetune is not None or self.student is None:
            return self.teacher.finetune is not None
        if self.sweep is not None:
            return any(
                one.student is not None and one.student.mode == "gold" for one in map(self.at, self.sweep.grid())
            )
        return self.student.mode == "gold" or "gold" in self.evaluate.baselines

    @model_validator(mode="after")
    def _points_are_students(self) -> Recipe:
        if self.sweep is None:
            return self
        if self.student is None:
            raise ValueError(
                "sweep is set, and the recipe has no `student` whose settings it could change: add one, for instance "
                "{init: {from: teacher, layers: 10}}"
            )
        shapes: dict[str, str] = {}
        for point in self.sweep.grid():
            student = self.at(point).student
            assert student is not None
            shape = repr(student.shaping(student.mode))
            if shape in shapes:
                raise ValueError(
                    f"sweep: `{shapes[shape]}` and `{point.label}` are the same student (launch and quantize "
                    "change no weight): take one of the two values away"
                )
            shapes[shape] = point.label
        return self

    def at(self, point: GridPoint) -> Recipe:
        """Return the recipe of one student of the sweep, as if its settings and name were given by --set.

        Values that were filled in from this recipe's name stay, so that all students share one teacher and one dataset.

        Raises:
            ValueError: a setting is unknown, or its value is wrong.
        """
        raw = self.model_dump(mode="json", by_alias=True, exclude_unset=True)
        raw |= {"sweep": None, "name": f"{self.name}-{point.slug}"}
        try:
            for path, value in point.settings.items():
                _put(raw, path, value, f"sweep.{path}")
            return recipe_from(raw, origin=f"at {point.label}")
        except RecipeError as error:
            raise ValueError(f"sweep: {error}") from None

    @model_validator(mode="after")
    def _white_box_needs_soft_labels(self) -> Recipe:
        if self.sweep is None and self.student and self.student.needs_soft_labels and self.label.soft is None:
            raise ValueError(
                "student.mode is 'white-box' and label.soft is null: set label.soft to {encoding: top-k, k: 32} or "
                "{encoding: sampled, draws: 50}, student.labels to 'live', or student.mode to 'black-box'"
            )
        return self

    def as_yaml(self) -> str:
        """Return the resolved recipe with all defaults as YAML, which loads back to the same recipe."""
        return dump_yaml(self.model_dump(mode="json", by_alias=True))


def load_recipe(path: str | Path, overrides: Sequence[str] | Mapping[str, Any] = ()) -> Recipe:
    """Read a recipe file and apply `a.b=value` overrides (the value is YAML).

    `path` is a file in the working folder, a recipe that ships with Stillhouse, or a URL.

    Raises:
        RecipeError: the file cannot be read, a key or value is wrong, or two settings contradict each other.
    """
    file = find_input(str(path))
    if file is None:
        raise RecipeError(f"the recipe {path} is not there. Check the path; `stillhouse --help` shows an example.")
    try:
        raw = parse_yaml(decode_text(file.read_bytes()))
    except (ValueError, OSError) as error:
        raise RecipeError(f"the recipe {path} cannot be read as YAML: {error}") from error
    if not isinstance(raw, dict):
        raise RecipeError(
            f"the recipe {path} is not a mapping of settings: it must begin with lines such as `name: my-run`"
        )
    return recipe_from(changed(raw, overrides), origin=str(path))


def changed(raw: Mapping[str, Any], overrides: Sequence[str] | Mapping[str, Any]) -> dict[str, Any]:
    """Return a copy of a recipe's settings with some of them changed: "a.b=value" each (YAML), or {"a.b": value}.

    Raises:
        RecipeError: an override is not of this form, or its path leads through something that has no settings inside.
    """
    result = copy.deepcopy(dict(raw))
    if isinstance(overrides, Mapping):
        for path, value in overrides.items():
            _put(result, path, value, path)
    else:
        for override in overrides:
            _apply_override(result, override)
    return result


def recipe_from(raw: Mapping[str, Any], origin: str) -> Recipe:
    """Validate a mapping as a recipe; `origin` names it in errors.

    Raises:
        RecipeError: settings are wrong; the message has one line for each.
    """
    try:
        return Recipe.model_validate(raw)
    except ValidationError as error:
        lines = [explain(Recipe, detail) for detail in error.errors()]
        raise RecipeError(f"the recipe {origin} is wrong:\n" + "\n".join(f"  {line}" for line in lines)) from None


def find_input(path: str) -> Location | None:
    """Return a file named in a recipe: in the working folder, shipped with Stillhouse, or at a URL; None: it is missing."""
    if "://" in path:
        return far if (far := location(path)).is_file() else None
    return next((file for file in (Path(path), shipped_folder() / path) if file.is_file()), None)


def shipped_folder() -> Path:
    """Return the folder of the shipped recipes and prompt files: in the installed package, or the root of a clone."""
    package = Path(__file__).parents[1]
    inside = package / "shipped"
    return inside if inside.is_dir() else package.parents[1]


def _apply_override(raw: dict[str, Any], override: str) -> None:
    path, separator, text = override.partition("=")
    if not separator or not path:
        raise RecipeError(
            f"--set {override} is not of the form a.b=value, for instance --set student.loss.temperature=2"
        )
    try:
        value = parse_yaml(text)
    except YamlError as error:
        raise RecipeError(f"--set {path}: the value is not YAML: {error}") from error
    _put(raw, path, value, f"--set {override}")


def _put(raw: dict[str, Any], path: str, value: Any, where: str) -> None:
    """Set the value at a dotted path; `where` is the start of error messages.

    Raises:
        RecipeError: the path leads through a value without settings inside, or to a list entry that does not exist.
    """
    *parents, last = path.split(".")
    place: dict[str, Any] | list[Any] = raw
    passed: list[str] = []
    for parent in parents:
        key = _key(place, parent, ".".join(passed), where)
        step = place.setdefault(key, {}) if isinstance(place, dict) else place[key]
        if step is None:
            step = place[key] = {}
        passed.append(parent)
        if not isinstance(step, dict | list):
            raise RecipeError(f"{where}: {parent!r} is {step!r}, which has no settings inside")
        place = step
    place[_key(place, last, ".".join(passed), where)] = value


def _key(place: dict[str, Any] | list[Any], part: str, path: str, where: str) -> Any:
    """Return a part of a dotted path as a key of `place` (the value at `path`): a name, or the index of a list entry.

    Raises:
        RecipeError: `place` is a list, and `part` is not the index of one of its entries.
    """
    if isinstance(place, dict):
        return part
    numbers = f"its entries are numbered from 0 to {len(place) - 1}" if place else "it has no entries"
    if not (part.isascii() and part.isdecimal()):
        raise RecipeError(f"{where}: {path} is a list, and {part!r} is no number of an entry: {numbers}")
    if int(part) >= len(place):
        raise RecipeError(f"{where}: {path} has no entry {part}: {numbers}. To add one, give the whole list")
    return int(part)

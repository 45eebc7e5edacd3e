"""The recipe: one YAML file that describes a whole run, as frozen pydantic models.

    recipe = load_recipe("flows/recipes/quickstart.yaml", overrides=["label.sampling.temperature=0"])

An unknown key is refused with its path and the nearest right one, a contradiction at construction: nothing is sent and
nothing is written before the whole recipe has been understood. Nothing in a recipe runs code, and no secret is in it.
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

VERSION = re.compile(r"v(\d+)")  # of a dataset, as outputs show it


class PromptSettings(Settings):
    """Where the prompts come from and which of them are held out."""

    source: str  # a .jsonl or .parquet file, here or at a URL, or a hub data set's id
    config: str | None = None  # of a hub data set: which of its configurations, where it has several
    split: str = "train"  # of a hub data set
    template: str | None = None  # a .j2 file; None where the rows carry `prompt` or `messages`
    system: str | None = None
    columns: dict[str, str] = Field(default_factory=dict)  # the template's name -> the row's name
    reference: str | None = None  # the column with the gold answer; None: `reference`, if the rows have one
    last_turn: Literal["refuse", "reference", "continue"] = "refuse"  # what an assistant's turn at the end is
    limit: int | None = Field(default=None, ge=1)
    holdout: float = Field(default=0.1, ge=0, lt=1)  # share of prompts, chosen by their content, for validation


class TeacherSettings(Settings):
    """The model that labels. `options` belong to the kind, and are checked by it."""

    kind: str
    model: str = ""
    revision: str | None = None
    finetune: FinetuneSettings | None = None  # `model` is fine-tuned on the references first, and the result labels
    task_prefix: str | None = None  # what every prompt must begin with; None: as `model`'s config has it; "": nothing
    price: PriceSettings | None = None  # None: looked up by model and provider
    options: dict[str, Any] = Field(default_factory=dict)

    @property
    def labelling_model(self) -> str:
        """The folder or hub id of the model that labels: the fine-tuned one, where there is one."""
        return self.finetune.folder if self.finetune else self.model

    @property
    def labelling_revision(self) -> str | None:
        """The revision of that model, where it is a hub's."""
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
    """What the teacher charges, where `genai-prices` does not know it or knows it wrongly."""

    input_usd_per_million: float = Field(ge=0)  # prompt tokens
    output_usd_per_million: float = Field(ge=0)  # completion tokens, reasoning included


class FilterSettings(Settings):
    """One quality filter; every key but `kind` is an option that the filter itself checks."""

    model_config = ConfigDict(frozen=True, extra="allow")

    kind: str

    @property
    def options(self) -> dict[str, Any]:
        return dict(self.model_extra or {})


class DatasetSettings(Settings):
    """Which dataset is written, or read."""

    root: str = "data/labels"  # a folder, or a URL such as s3://bucket/labels
    name: str = Field(pattern=NAME)
    version: int | None = Field(default=None, ge=1)  # to learn from; None: the newest
    licence: str | None = None  # for the card: an SPDX name such as apache-2.0
    journal: str | None = None  # a folder of this machine; None: beside the versions, of a URL under data/journals
    when_busy: Literal["leave", "wait"] = "leave"  # what labelling does where another run is writing the dataset
    patience: float = Field(default=3600, gt=0)  # seconds that it waits

    @field_validator("version", mode="before")
    @classmethod
    def _as_it_is_shown(cls, given: Any) -> Any:
        """`v002`, as every output names it, is 2."""
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
        """Where the same prompts lie with their references as completions."""
        return self.model_copy(update={"name": f"{self.name}-gold", "version": None})


class Recipe(Settings):
    """One whole run."""

    name: str = Field(pattern=NAME)
    seed: int = Field(default=0, ge=0)
    prompts: PromptSettings
    references: PromptSettings | None = None  # prompts whose references are learnt from; None: `prompts`
    teacher: TeacherSettings
    label: LabelSettings = LabelSettings()
    quality: tuple[FilterSettings, ...] = ()
    dataset: DatasetSettings
    student: StudentSettings | None = None
    students: str = "data/students"
    evaluate: EvaluateSettings = EvaluateSettings()
    sweep: SweepSettings | None = None  # several students of one dataset; `student` is what they have in common

    @model_validator(mode="before")
    @classmethod
    def _references_are_as_prompts(cls, given: Any) -> Any:
        """What `references` leaves out is as in `prompts`: {limit: 5000}."""
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
        """The recipe's own name and seed, where `teacher.finetune` gives no others."""
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
        """Where the references come from that somebody learns."""
        return self.references or self.prompts

    @property
    def needs_gold(self) -> bool:
        """Whether somebody learns from the references."""
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
        """The recipe of one student of the sweep: as if its settings and its name had been given by --set.

        What was filled in from this recipe's name stays, so that all students have one teacher and one dataset.

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
        """The resolved recipe, defaults written out; it loads back to the same recipe."""
        return dump_yaml(self.model_dump(mode="json", by_alias=True))


def load_recipe(path: str | Path, overrides: Sequence[str] | Mapping[str, Any] = ()) -> Recipe:
    """Read a recipe file and apply `a.b=value` overrides (the value is YAML).

    The path is looked up in the working folder, then among the recipes that ship with Stillhouse; or it is a URL.

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
    """Check a mapping and make it a recipe; `origin` is named in the errors.

    Raises:
        RecipeError: with one line for every wrong setting.
    """
    try:
        return Recipe.model_validate(raw)
    except ValidationError as error:
        lines = [explain(Recipe, detail) for detail in error.errors()]
        raise RecipeError(f"the recipe {origin} is wrong:\n" + "\n".join(f"  {line}" for line in lines)) from None


def find_input(path: str) -> Location | None:
    """A file that a recipe names: in the working folder, or else among what ships with Stillhouse; or behind a URL."""
    if "://" in path:
        return far if (far := location(path)).is_file() else None
    return next((file for file in (Path(path), shipped_folder() / path) if file.is_file()), None)


def shipped_folder() -> Path:
    """Where recipes and prompt files lie: inside the installed package, or at the top of a clone."""
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
    """Set what a dotted path names; `where` begins the error.

    Raises:
        RecipeError: the path leads through something that has no settings inside.
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
    """What a part of a dotted path is in `place`, which lies at `path`: a name, or the number of an entry of a list."""
    if isinstance(place, dict):
        return part
    numbers = f"its entries are numbered from 0 to {len(place) - 1}" if place else "it has no entries"
    if not (part.isascii() and part.isdecimal()):
        raise RecipeError(f"{where}: {path} is a list, and {part!r} is no number of an entry: {numbers}")
    if int(part) >= len(place):
        raise RecipeError(f"{where}: {path} has no entry {part}: {numbers}. To add one, give the whole list")
    return int(part)

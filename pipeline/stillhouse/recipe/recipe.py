"""The recipe: all settings of one run, as frozen pydantic models.

Contradictory settings are errors. A recipe runs no code and contains no secrets.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from pydantic import Field, ValidationError, model_validator

from stillhouse.errors import RecipeError, RecipeFaults
from stillhouse.inputs.yaml_text import dump_yaml
from stillhouse.recipe.dataset import NAME, DatasetSettings
from stillhouse.recipe.evaluate import EvaluateSettings
from stillhouse.recipe.label import LabelSettings
from stillhouse.recipe.on_policy import OnPolicySettings
from stillhouse.recipe.overrides import set_value
from stillhouse.recipe.prompts import PromptSettings
from stillhouse.recipe.quality import FilterSettings
from stillhouse.recipe.student import StudentSettings
from stillhouse.recipe.sweep import GridPoint, SweepSettings
from stillhouse.recipe.teacher import TeacherSettings
from stillhouse.settings import SettingError, Settings, setting_errors

_SECOND_RECIPE = "remove it, and run the rounds by a second recipe whose student.init.model is this student's folder"


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
    on_policy: OnPolicySettings | None = Field(
        default=None, description="rounds in which the student learns from its own text; None: no rounds"
    )
    sweep: SweepSettings | None = Field(
        default=None, description="train several students; `student` has their common settings"
    )

    @model_validator(mode="before")
    @classmethod
    def _teachers_are_an_ensemble(cls, given: Any) -> Any:
        """Accept `teachers: {ensemble: [a, b], weights: [2, 1]}` in place of a `teacher` of kind ensemble."""
        if not isinstance(given, Mapping) or given.get("teachers") is None:
            return given
        teachers = given["teachers"]
        models = teachers.get("ensemble") if isinstance(teachers, Mapping) else None
        if not isinstance(models, list | tuple) or not models or given.get("teacher") is not None:
            raise SettingError(
                "it has the models of an ensemble, in place of `teacher`",
                setting="teachers",
                fix="write it as {ensemble: [model, model], weights: [2, 1]}, and remove `teacher`",
            )
        first = models[0].get("model") if isinstance(models[0], Mapping) else models[0]
        options = {"teachers": models, **{name: value for name, value in teachers.items() if name != "ensemble"}}
        teacher = {"kind": "ensemble", "model": first or "", "options": options}
        return {**{name: value for name, value in given.items() if name != "teachers"}, "teacher": teacher}

    @model_validator(mode="before")
    @classmethod
    def _fill_references_from_prompts(cls, given: Any) -> Any:
        """Fill in the keys that `references` leaves out, as in {limit: 5000}, from `prompts`."""
        if not isinstance(given, Mapping) or not isinstance(given.get("references"), Mapping):
            return given
        prompts = given.get("prompts")
        return {**given, "references": {**(prompts if isinstance(prompts, Mapping) else {}), **given["references"]}}

    @model_validator(mode="after")
    def _references_have_the_same_holdout(self) -> Recipe:
        if self.references is not None and self.references.holdout != self.prompts.holdout:
            raise SettingError(
                f"prompts.holdout is {self.prompts.holdout}, and held-out prompts must not be learnt from",
                setting="references.holdout",
                value=self.references.holdout,
                fix="remove references.holdout",
            )
        return self

    @model_validator(mode="before")
    @classmethod
    def _fill_finetune_name_and_seed(cls, given: Any) -> Any:
        """Fill in the recipe's name and seed if `teacher.finetune` has none."""
        teacher = given.get("teacher") if isinstance(given, Mapping) else None
        finetune = teacher.get("finetune") if isinstance(teacher, Mapping) else None
        if not isinstance(teacher, Mapping) or not isinstance(finetune, Mapping):
            return given
        defaults = {"name": given.get("name"), "seed": given.get("seed", 0)}
        filled = {**finetune, **{key: value for key, value in defaults.items() if finetune.get(key) is None}}
        return {**given, "teacher": {**teacher, "finetune": filled}}

    @model_validator(mode="after")
    def _teacher_and_students_have_different_folders(self) -> Recipe:
        tuned = self.teacher.finetune
        if tuned and Path(tuned.folder).parent == Path(self.students) / self.name:
            raise SettingError(
                f"teacher.finetune.name is {tuned.name!r}, so the teacher would be stored in the students' folder",
                setting="teacher.finetune.root",
                value=tuned.root,
                fix="change teacher.finetune.root or teacher.finetune.name",
            )
        return self

    @model_validator(mode="after")
    def _teacher_and_student_can_learn_together(self) -> Recipe:
        if not self.learns_along:
            return self
        student = self.student
        if student is None or not student.needs_live_teacher:
            raise SettingError(
                "the student learns from the teacher as it is in each step, so from a live one",
                setting="student.labels",
                value=student and student.labels,
                fix="set student.labels to live and student.mode to white-box, or remove teacher.finetune.along",
            )
        assert self.teacher.finetune is not None
        fresh = self.teacher.finetune.config is not None
        refused = {
            "sweep": (self.sweep, "each of its students would need a teacher of its own", "train one student a recipe"),
            "on_policy": (self.on_policy, "rounds need a teacher that stays the same", _SECOND_RECIPE),
            "student.data": (student.data, "both learn from the references", "remove it"),
            "student.lora": (student.lora, "adapters cannot be trained beside a teacher", "remove it"),
            "student.train.fsdp": (student.train.get("fsdp"), "two models cannot be sharded as one", "remove it"),
            "student.train.use_liger_kernel": (
                student.train.get("use_liger_kernel"),
                "its kernels are for one model",
                "remove it",
            ),
            "student.init.choose": (
                student.init.needs_dataset,
                "there are no labels yet on which importance could be measured",
                "set it to 'even', or list the layers in student.init.layers, and remove student.init.width",
            ),
            "student.init.from": (
                student.init.from_ is not None and fresh,
                "the teacher begins with fresh weights (teacher.finetune.config)",
                "give the student a `config` too",
            ),
        }
        for setting, (is_set, why, fix) in refused.items():
            if is_set:
                raise SettingError(f"teacher.finetune.along is true, and {why}", setting=setting, fix=fix)
        return self

    @property
    def learns_along(self) -> bool:
        """Whether teacher and student learn in the same steps (`teacher.finetune.along`)."""
        return self.teacher.finetune is not None and self.teacher.finetune.along

    def learns_references(self, mode: str) -> bool:
        """Whether a student of this mode learns from the references and not from labels."""
        return mode == "gold" or (mode == "white-box" and self.learns_along)

    @property
    def finetuning(self) -> Recipe | None:
        """The fine-tuning of the teacher as a recipe, whose student becomes the teacher; None: it is not fine-tuned."""
        settings = self.teacher.finetune
        if settings is None:
            return None
        trusted = self.teacher.options.get("trust_remote_code") is True
        beside = self.student if settings.along else None
        changes = {
            "name": settings.name or self.name,
            "seed": self.seed if settings.seed is None else settings.seed,
            "students": settings.root,
            "teacher": self.teacher.model_copy(update={"finetune": None}),
            "student": settings.as_student(
                self.teacher.model, self.teacher.revision, beside=beside, trust_remote_code=trusted
            ),
            "evaluate": EvaluateSettings(baselines=()),
        }
        return self.model_copy(update=changes)

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
                one.student is not None and one.student.mode == "gold" for one in map(self.for_point, self.sweep.grid())
            )
        return self.student.mode == "gold" or "gold" in self.evaluate.baselines

    @model_validator(mode="after")
    def _sweep_points_differ(self) -> Recipe:
        if self.sweep is None:
            return self
        if self.student is None:
            raise SettingError(
                "the recipe has no `student` whose settings the sweep could change",
                setting="sweep",
                fix="add a student, for instance {init: {from: teacher, layers: 10}}",
            )
        shapes: dict[str, str] = {}
        for point in self.sweep.grid():
            try:
                student = self.for_point(point).student
            except RecipeError as error:
                raise SettingError(error) from None
            assert student is not None
            shape = repr(student.key_settings(student.mode))
            if shape in shapes:
                raise SettingError(
                    f"`{shapes[shape]}` and `{point.label}` are the same student (launch and quantize do not change the "
                    "weights)",
                    setting="sweep",
                    fix="remove one of the two values",
                )
            shapes[shape] = point.label
        return self

    def for_point(self, point: GridPoint) -> Recipe:
        """Return the recipe of one student of the sweep, as if its settings and name were given by --set.

        Values that were filled in from this recipe's name stay, so that all students share one teacher and one dataset.

        Raises:
            RecipeError: a setting is unknown, or its value is wrong.
        """
        raw = self.model_dump(mode="json", by_alias=True, exclude_unset=True)
        raw |= {"sweep": None, "name": f"{self.name}-{point.slug}"}
        try:
            for path, value in point.settings.items():
                set_value(raw, path, value, f"sweep.{path}")
            return _validated(raw)
        except RecipeError as error:
            raise error.within(f"sweep, {point.label}") from None

    @model_validator(mode="after")
    def _white_box_needs_soft_labels(self) -> Recipe:
        if self.sweep is None and self.student and self.student.needs_soft_labels and self.label.soft is None:
            raise SettingError(
                "student.mode is 'white-box', which needs soft labels",
                setting="label.soft",
                value=None,
                fix="set label.soft to {encoding: top-k, k: 32} or {encoding: sampled, draws: 50}, student.labels to live, "
                "or student.mode to black-box",
            )
        return self

    @model_validator(mode="after")
    def _rounds_need_a_white_box_student(self) -> Recipe:
        if self.on_policy is None:
            return self
        if self.student is None or self.student.mode != "white-box":
            raise SettingError(
                "the student learns from the teacher's scores of its own text, which is white-box",
                setting="student.mode",
                value=self.student and self.student.mode,
                fix="set it to white-box, or remove on_policy",
            )
        if self.sweep is not None:
            raise SettingError(
                "the students of a sweep have no rounds",
                setting="on_policy",
                fix="remove it, and add it to the recipe of the size that you choose",
            )
        return self

    @property
    def has_off_policy_student(self) -> bool:
        """Whether the student learns from the dataset itself; False: only in rounds, from the untrained student on."""
        return self.student is not None and (self.on_policy is None or self.on_policy.start is None)

    def as_yaml(self) -> str:
        """Return the resolved recipe with all defaults as YAML, which loads back to the same recipe."""
        return dump_yaml(self.model_dump(mode="json", by_alias=True))


def recipe_from(raw: Mapping[str, Any], origin: str) -> Recipe:
    """Validate a mapping as a recipe; `origin`, such as the file's path, names it in errors.

    Raises:
        RecipeError: a setting is unknown or wrong, or two settings contradict each other.
        RecipeFaults: several settings are wrong; the message has one line for each.
    """
    try:
        return _validated(raw)
    except RecipeFaults as error:
        message = str(error).replace("the recipe has", f"the recipe {origin} has", 1)
        raise RecipeFaults(message, faults=error.faults) from None
    except RecipeError as error:
        raise error.within(f"the recipe {origin}") from None


def _validated(raw: Mapping[str, Any]) -> Recipe:
    try:
        return Recipe.model_validate(raw)
    except ValidationError as error:
        faults = setting_errors(Recipe, error)
    raise faults[0] if len(faults) == 1 else RecipeFaults.of(faults)

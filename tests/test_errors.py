"""Errors carry setting, value and fix, and survive the way between processes."""

import json
import pickle
from typing import Any

import pytest

from stillhouse import errors
from stillhouse.errors import DatasetBusy, RecipeError, RecipeFaults, StillhouseError, UsageError, error_from
from stillhouse.recipe.finetune import FinetuneSettings
from stillhouse.recipe.student import StudentSettings

KINDS = [one for one in vars(errors).values() if isinstance(one, type) and issubclass(one, StillhouseError)]


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({}, "there is no such kind"),
        ({"setting": "student.loss.kind", "value": "x"}, "student.loss.kind is 'x': there is no such kind"),
        ({"setting": "label.soft", "value": None}, "label.soft is null: there is no such kind"),
        ({"setting": "student.packing", "value": True}, "student.packing is true: there is no such kind"),
        ({"setting": "OPENAI_API_KEY"}, "OPENAI_API_KEY: there is no such kind"),
        ({"fix": "use forward-kl"}, "there is no such kind. Use forward-kl."),
        ({"fix": "did you mean 'forward-kl'?"}, "there is no such kind. Did you mean 'forward-kl'?"),
        ({"setting": "a", "value": "y" * 300}, f"a is '{'y' * 199}...: there is no such kind"),
    ],
)
def test_a_message_is_composed_of_the_fields(fields: dict[str, Any], message: str) -> None:
    error = RecipeError("there is no such kind", **fields)
    assert str(error) == message
    assert (error.setting, error.value, error.fix) == tuple(fields.get(name) for name in ("setting", "value", "fix"))


def test_a_fix_follows_a_hint() -> None:
    error = RecipeError("there is no such column. Did you mean 'word'?", fix="correct it")
    assert str(error) == "there is no such column. Did you mean 'word'? Correct it."


def test_the_same_error_about_another_setting() -> None:
    error = RecipeError("too many", setting="student.packing", value=3, fix="take 2")
    assert str(error.replace(setting="teacher.finetune.packing")) == "teacher.finetune.packing is 3: too many. Take 2."
    assert str(error.within("sweep, 16 layers")) == "sweep, 16 layers: student.packing is 3: too many. Take 2."
    assert error.within("x").setting == "student.packing"
    assert DatasetBusy("held", "run 7").replace(setting="dataset.name").holder == "run 7"


@pytest.mark.parametrize("kind", KINDS)
def test_every_error_comes_back_from_another_process(kind: type[StillhouseError]) -> None:
    error = kind("too many", setting="a.b", value=3, fix="take 2")
    for back in (pickle.loads(pickle.dumps(error)), error_from(json.loads(json.dumps(error.as_dict())))):
        assert type(back) is kind
        assert back.as_dict() == error.as_dict()
        assert back.exit_status == error.exit_status


def test_what_else_an_error_carries_is_kept_by_pickle() -> None:
    busy = pickle.loads(pickle.dumps(DatasetBusy("held", "run 7", setting="dataset.name", value="x")))
    assert (str(busy), busy.holder) == ("dataset.name is 'x': held", "run 7")
    faults = RecipeFaults.of([RecipeError("one"), UsageError("two")])
    assert [str(one) for one in pickle.loads(pickle.dumps(faults)).faults] == ["one", "two"]


def test_an_unknown_kind_is_none() -> None:
    assert error_from({"kind": "ValueError", "message": "x"}) is None
    assert error_from({"kind": "Sequence"}) is None


def test_a_value_that_is_no_json_is_shown_as_text() -> None:
    assert RecipeError("no", setting="a", value={1: (2,)}).as_dict()["value"] == "{1: (2,)}"


def test_settings_know_their_path_in_the_recipe() -> None:
    student = StudentSettings.model_validate({"init": {"model": "a"}})
    teacher = FinetuneSettings.model_validate({"name": "t"}).as_student("a", None, trust_remote_code=False)
    assert [student.setting(name) for name in ("packing", "init.model")] == ["student.packing", "student.init.model"]
    assert [
        teacher.setting(name) for name in ("packing", "init", "init.config", "trust_remote_code", "train.fp16")
    ] == [
        "teacher.finetune.packing",
        "teacher.model",
        "teacher.finetune.config",
        "teacher.options.trust_remote_code",
        "teacher.finetune.train.fp16",
    ]

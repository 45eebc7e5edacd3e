"""The errors about settings: what `--json` shows of them, and the fix for an unknown name."""

import pytest

from stillhouse.errors import RecipeError
from stillhouse.settings import Settings, nearest, parse_options


class Options(Settings):
    temperature: float = 1.0


@pytest.mark.parametrize(
    ("word", "choices", "otherwise", "fix"),
    [
        ("temprature", ["alpha", "temperature"], None, "did you mean 'temperature'?"),
        ("temprature", ["alpha", "temperature"], "remove it", "did you mean 'temperature'? Or remove it"),
        ("x", ["alpha", "beta"], None, "choose from: alpha, beta"),
        ("x", ["alpha", "beta"], "remove it", "choose from: alpha, beta; or remove it"),
        ("x", [], "remove it", "remove it"),
        ("x", [], None, None),
    ],
)
def test_the_fix_for_an_unknown_name(word: str, choices: list[str], otherwise: str | None, fix: str | None) -> None:
    assert nearest(word, choices, otherwise) == fix


def test_the_nearest_name_is_the_fix_of_an_unknown_setting() -> None:
    with pytest.raises(RecipeError) as caught:
        parse_options("student.loss", {"temprature": 2}, Options)
    assert caught.value.as_dict() == {
        "kind": "RecipeError",
        "message": "student.loss.temprature: there is no such setting. Did you mean 'temperature'?",
        "problem": "there is no such setting",
        "setting": "student.loss.temprature",
        "value": None,
        "fix": "did you mean 'temperature'?",
    }

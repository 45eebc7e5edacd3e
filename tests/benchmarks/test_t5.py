"""The experiment with words and phonemes: its data, its runs, and its table, apart from any training."""

import json
import re
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from benchmarks import answers, t5, t5_data, t5_table
from benchmarks.t5_table import Row
from stillhouse.recipe.load import load_recipe


def test_words_are_plain_taken_once_and_without_stress_marks() -> None:
    words = dict(t5_data.spoken_words())
    assert len(words) > 100_000
    assert words["hello"] == ["HH", "AH", "L", "OW"]
    assert words["tomato"] == ["T", "AH", "M", "EY", "T", "OW"]  # the first of two
    assert all(word.isalpha() and word.islower() and word.isascii() for word in words)
    assert not any(mark in phoneme for phonemes in words.values() for phoneme in phonemes for mark in "012")


def test_the_tokenizer_has_one_token_a_letter_and_one_a_phoneme(tmp_path: Path) -> None:
    from transformers import AutoTokenizer

    t5_data.tokenizer(["HH", "AH", "L", "OW"]).save_pretrained(tmp_path)
    tokenizer = AutoTokenizer.from_pretrained(tmp_path)
    assert tokenizer.convert_ids_to_tokens(tokenizer("hello")["input_ids"]) == [*"hello", "</s>"]
    spoken = tokenizer("HH AH L OW", add_special_tokens=False)["input_ids"]
    assert tokenizer.convert_ids_to_tokens(spoken) == ["HH", "AH", "L", "OW"]
    assert tokenizer.decode(spoken) == "HH AH L OW"
    assert tokenizer.unk_token_id not in [*spoken, *tokenizer("hello")["input_ids"]]


@pytest.mark.parametrize("experiment", [t5.WHOLE, t5.QUICK])
def test_every_run_is_a_recipe_and_all_share_one_teacher(experiment: t5.Experiment) -> None:
    recipes = [load_recipe(t5_data.RECIPE, [*experiment.shared, *run.settings]) for run in t5.runs(experiment)]
    assert len({recipe.name for recipe in recipes}) == len(recipes) == 4 * len(experiment.seeds)
    assert {recipe.teacher.finetune.model_dump_json() for recipe in recipes if recipe.teacher.finetune} == {
        recipes[0].teacher.finetune.model_dump_json()  # type: ignore[union-attr]
    }
    load_recipe(t5_data.RECIPE, [*experiment.shared, *experiment.as_text])  # as it is labelled
    live, fresh, text, copied = recipes[:: len(experiment.seeds)]
    assert live.student and fresh.student and text.student and copied.student
    assert fresh.dataset == live.dataset == copied.dataset
    assert (text.dataset.name, text.label.mode, text.label.soft) == (f"{experiment.name}-text", "generate", None)
    assert fresh.student.init == live.student.init == text.student.init
    assert fresh.student.train == live.student.train == text.student.train
    assert fresh.student.loss == live.student.loss
    assert (fresh.student.labels, live.student.labels) == ("stored", "live")
    assert (text.student.mode, copied.student.mode) == ("black-box", "gold")


def row(name: str, parameters: int, *right: list[int]) -> Row:
    return Row(name, parameters, 4.0, 1.0, 900.0, np.array(right, dtype=np.float64), (0.1, 0.12))


def test_what_a_student_keeps_is_a_share_of_the_teachers_right_words() -> None:
    student, teacher = row("gold", 1, [1, 0, 0, 1], [1, 0, 0, 0]), row("teacher", 4, [1, 1, 1, 0])
    assert t5_table.kept(student, teacher) == pytest.approx(100 * 0.375 / 0.75)
    assert student.by_word.tolist() == [1, 0, 0, 0.5]


def test_the_table_and_the_plot_show_every_row(tmp_path: Path) -> None:
    words = {t5_table.GOLD: [1, 0] * 100, t5_table.WHITE_BOX: [1, 1, 1, 0] * 50}
    rows = [
        row(name, 100_000 * (9 - place), *[words.get(name, [1, 1] * 100)] * 2)
        for place, (name, _, _) in enumerate(t5_table.ROWS)
    ]
    text = t5_table.section(replace(t5.WHOLE, seeds=(1, 2)), rows, [10.0, 2.0, 30.0, 3.0])
    assert all(f"| {name} |" in text for name, _, _ in t5_table.ROWS)
    assert re.search(r"\| gold \|.* 50\.0 \[4\d\.\d, 5\d\.\d\] \| 50\.0, 50\.0 \| 11\.0 \| 50\.0 \|", text)
    assert re.search(r"less gold, .*: 25\.0 \[1\d\.\d, 3\d\.\d\] points", text)
    assert "200 words are held out" in text
    assert "in all 45 (wanted: 90)" in text
    t5_table.plot(rows, tmp_path / "plot.png")
    assert (tmp_path / "plot.png").read_bytes().startswith(b"\x89PNG")


def test_every_model_is_timed_as_often_as_the_others_and_none_always_first() -> None:
    asked: list[str] = []

    class Model:
        def __init__(self, name: str) -> None:
            self.name = name

        def warm_up(self) -> None:
            asked.append(f"warm {self.name}")

        def answers_a_second(self) -> float:
            asked.append(self.name)
            return float(len(asked))

    found = answers.speeds([Model(name) for name in "abc"], 3)  # type: ignore[misc]
    assert asked == ["warm a", "warm b", "warm c", *"abc", *"bca", *"cab"]
    assert [len(each) for each in found] == [3, 3, 3]
    assert found[0] == [4.0, 9.0, 11.0]


def test_the_speed_of_a_row_is_the_median_of_one_model_s_rounds(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    calls: list[list[str]] = []

    def of_models(arguments: list[str | Path]) -> list[object]:
        calls.append([str(one) for one in arguments])
        if arguments[0] == "--rounds":
            return [[100.0 + place, 300.0 + place, 200.0 + place] for place in range(len(arguments) - 2)]
        return [[True, False] for _ in arguments]

    def model(role: str, seed: int) -> dict[str, object]:
        scores = {t5_table.RIGHT: {"mean": 0.5}, t5_table.ERRORS: {"mean": 0.1}}
        sizes = {"parameters": 5, "megabytes": 1.0, "is_int8": True}
        return {"role": role, "model": f"{role}-{seed}", "scores": scores, **sizes}

    runs = list(t5.runs(replace(t5.WHOLE, seeds=(1, 2))))
    roles = {role for _, _, role in t5_table.ROWS}
    for run in runs:
        folder = tmp_path / run.name
        folder.mkdir()
        report = {"models": [model(f"{role}", run.seed) for role in roles]}
        (folder / "report.json").write_text(json.dumps(report))
    monkeypatch.setattr(t5_table, "REPORTS", tmp_path)
    monkeypatch.setattr(t5_table, "_of_models", of_models)
    rows = t5_table.read_rows(runs)
    assert [row.words_per_second for row in rows] == [200.0 + place for place in range(len(t5_table.ROWS))]
    timed = [call for call in calls if call[0] == "--rounds"]
    assert timed == [["--rounds", str(t5_table.ROUNDS), *(f"{role}-1" for _, _, role in t5_table.ROWS)]]
    assert [len(row.right) for row in rows] == [1, 2, 2, 2, 2, 2, 2]

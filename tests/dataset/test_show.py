"""What `datasets show` says: lengths, entropies, token texts, samples; in a terminal and for programs."""

import json
import math
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from typer.testing import CliRunner

from stillhouse.cli.main import app
from stillhouse.dataset.encodings import PackedLabels
from stillhouse.dataset.listing import bin_name, sample_lines, statistics_lines
from stillhouse.dataset.samples import pick_samples
from stillhouse.dataset.statistics import entropies_of, histogram, measure_dataset
from stillhouse.dataset.token_texts import TokenTexts, find_token_texts
from stillhouse.errors import UsageError
from stillhouse.models.files import ModelFiles
from stillhouse.recipe.label import SoftSettings
from stillhouse.records import Message, Prompt
from tests.conftest import make_tiny_model
from tests.dataset.made import SAMPLED, TEACHER, TOP_K, completion, make_dataset

NO_TEXTS = TokenTexts(None, "")


# ------------------------------------------------------------------------------------------------------------ statistics


def packed(rows: list[list[float]], tails: list[float]) -> PackedLabels:
    """Labels of these probabilities."""
    flat = np.array([p for row in rows for p in row], np.float32)
    offsets = np.cumsum([0, *(len(row) for row in rows)]).astype(np.int64)
    with np.errstate(divide="ignore"):
        tail = np.log(np.array(tails, np.float32))
        return PackedLabels(np.zeros(len(flat), np.int32), np.log(flat), offsets, tail)


def test_entropies_of_known_distributions() -> None:
    found = entropies_of(packed([[1.0], [0.5, 0.5], [0.25], [], [0.5, 0.25]], [0, 0, 0.75, 1, 0.25]))
    two = -0.25 * math.log(0.25) - 0.75 * math.log(0.75)
    assert found == pytest.approx([0, math.log(2), two, 0, 1.5 * math.log(2)], abs=1e-6)


@given(st.lists(st.floats(1e-6, 1), min_size=2, max_size=30), st.integers(1, 29))
def test_lumping_outcomes_together_never_raises_the_entropy(weights: list[float], k: int) -> None:
    shares = sorted((weight / sum(weights) for weight in weights), reverse=True)
    whole = -sum(share * math.log(share) for share in shares)
    (bound,) = entropies_of(packed([shares[:k]], [max(0.0, 1 - sum(shares[:k]))]))
    assert -1e-6 <= bound <= whole + 1e-4


@given(st.lists(st.integers(0, 5000), min_size=1, max_size=200))
def test_a_histogram_counts_every_value_once(values: list[int]) -> None:
    array = np.array(values, np.float64)
    found = histogram(array, np.ones(len(values), np.int64), "tokens", whole=True)
    assert found is not None
    assert sum(found.counts) == found.values == len(values)
    assert found.mean == pytest.approx(array.mean())
    assert found.highest == array.max()
    assert len(found.counts) <= 17
    for place, count in enumerate(found.counts[: -1 if found.open_end else None]):
        assert count == sum(found.edges[place] <= value < found.edges[place + 1] for value in values)
    assert found.median in values and found.p95 in values


def test_a_long_tail_does_not_press_the_rest_together() -> None:
    values = np.array([*range(1, 41), 9000], np.float64)
    found = histogram(values, np.array([*[100] * 40, 1]), "tokens", whole=True)
    assert found is not None and found.open_end and found.edges[-1] < 60
    assert bin_name(found, len(found.counts) - 1).endswith("+")


@pytest.mark.parametrize(("soft", "entropy"), [(TOP_K, 1.30), (SAMPLED, 1.21)])
def test_entropies_of_both_encodings(tmp_path: Path, soft: SoftSettings, entropy: float) -> None:
    rows = [completion(str(number), 10 + number, soft=soft) for number in range(20)]
    made = make_dataset(tmp_path, "words", rows, soft=soft)
    found = measure_dataset(made)
    assert found.entropies is not None and found.lengths is not None
    assert found.entropies.mean == pytest.approx(entropy, abs=0.02)
    assert (found.entropies.values, found.rows_measured) == (sum(range(10, 30)), 20)
    assert (found.lengths.unit, found.lengths.mean, found.lengths.highest) == ("tokens", 19.5, 29)
    text = "\n".join(statistics_lines(found, made.manifest))
    assert ("lower bound" if soft == TOP_K else "8 draws") in text
    assert "█" in text


def test_characters_where_no_tokens_were_counted(tmp_path: Path) -> None:
    made = make_dataset(tmp_path, "words", [completion("kettle", completion_tokens=None)])
    lengths = measure_dataset(made).lengths
    assert lengths is not None
    assert (lengths.unit, lengths.highest) == ("characters", len("A kettle is a thing."))


# ----------------------------------------------------------------------------------------------------------- token texts


def test_texts_of_the_teacher_and_of_no_other(tmp_path: Path, tiny_model: Path) -> None:
    digest = ModelFiles(str(tiny_model), tiny_model).tokenizer_sha256
    teacher = replace(TEACHER, model=str(tiny_model), tokenizer_sha256=digest)
    rows = [completion("kettle", soft=TOP_K)]
    own = make_dataset(tmp_path, "own", rows, soft=TOP_K, teacher=teacher).manifest
    texts = find_token_texts(own)
    assert texts.found and texts.note == ""
    assert texts(0) == "<|end|>"
    assert {texts(number) for number in range(4, 260)} >= {" ", "a", "\n", "⟨c3⟩"}
    assert texts(99_999) == "#99999"

    other = make_tiny_model(tmp_path / "other", merges=2)
    with pytest.raises(UsageError, match="own/v001 was labelled with another tokenizer"):
        find_token_texts(own, other)
    with pytest.raises(UsageError, match=r"has no tokenizer\.json"):
        find_token_texts(own, tmp_path)
    moved = own.model_copy(update={"teacher": replace(teacher, model="gone/away")})
    assert not find_token_texts(moved).found
    assert find_token_texts(moved, tiny_model)(0) == "<|end|>"
    wrong = own.model_copy(update={"teacher": replace(teacher, model=str(other))})
    assert "another tokenizer" in find_token_texts(wrong).note
    assert find_token_texts(wrong)(7) == "#7"


# --------------------------------------------------------------------------------------------------------------- samples


def test_samples_are_spread_and_always_the_same(tmp_path: Path) -> None:
    rows = [completion(f"word {number}") for number in range(700)]
    made = make_dataset(tmp_path, "words", rows[:600], rows[600:])
    first, again = (pick_samples(made, 7, NO_TEXTS) for _ in range(2))
    asked = [sample.completion.prompt.messages[-1].content for sample in first]
    assert asked == [f"word {number * 100}" for number in range(7)]
    assert [sample.split for sample in first] == ["train"] * 6 + ["validation"]
    assert first == again
    assert len(pick_samples(made, 9999, NO_TEXTS)) == 700
    assert pick_samples(made, 0, NO_TEXTS) == []


@pytest.mark.parametrize("soft", [TOP_K, SAMPLED])
def test_alternatives_of_both_encodings(tmp_path: Path, soft: SoftSettings) -> None:
    made = make_dataset(tmp_path, "words", [completion("a", 3, soft=soft), completion("b", 4, soft=soft)], soft=soft)
    two = pick_samples(made, 2, NO_TEXTS)
    assert [len(sample.tokens or ()) for sample in two] == [3, 4]
    assert two[1].tokens is not None
    token = two[1].tokens[2]
    assert [one.text for one in token.alternatives][:2] == ["#2", "#3"]
    assert token.alternatives[0].probability == pytest.approx(0.5, abs=0.005)
    assert [one.chosen for one in token.alternatives] == [True, False, False, False]
    assert token.others == pytest.approx(0.0625 if soft == TOP_K else 0, abs=0.01)


def test_a_prompt_cannot_drive_the_terminal(tmp_path: Path) -> None:
    row = replace(
        completion("x", text="\x1b[31mred\x07 [bold]no[/bold]"), prompt=Prompt((Message("user", "a\nb\x1b[2J"),))
    )
    made = make_dataset(tmp_path, "words", [row])
    lines = sample_lines(pick_samples(made, 1, NO_TEXTS), 60)
    assert all(character.isprintable() for line in lines for character in line)
    done = CliRunner().invoke(app, ["datasets", "show", "words", "--root", str(tmp_path)])
    assert "[bold]no[/bold]" in done.stdout and "\x1b" not in done.stdout


# --------------------------------------------------------------------------------------------------------------- command


def test_show_for_people_and_for_programs(tmp_path: Path) -> None:
    make_dataset(tmp_path, "words", [completion("kettle", soft=TOP_K)], soft=TOP_K, parents=["a/v001"], licence="mit")
    runner = CliRunner()
    command = ["datasets", "show", "words", "--root", str(tmp_path)]
    text = runner.invoke(app, command).stdout
    for part in ("words/v001", "teacher-a (scripted)", "a/v001", "top-k, k = 4", "mit", "rejected     none", "kettle"):
        assert part in text, part
    said = json.loads(runner.invoke(app, [*command, "--json"]).stdout)
    assert said["statistics"]["lengths"]["mean"] == 5
    assert said["teacher"]["model"] == "teacher-a"
    missing = runner.invoke(app, ["datasets", "show", "wrods", "--root", str(tmp_path)])
    assert missing.exit_code == 1 and "finished datasets: words/v001" in missing.stderr

"""Duplicates of what was kept before: to the word, and nearly."""

import gc
import random
import sqlite3
from itertools import pairwise

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from stillhouse.errors import RecipeError
from stillhouse.quality.base import apply_filters
from stillhouse.quality.duplicates import Banding, Duplicates, DuplicatesOptions, open_filter
from stillhouse.records import Completion
from stillhouse.text import shingles
from tests.quality.completions import completion, filters

LONG = "The kettle stands on the stove and sings when the water in it has come to the boil in the morning"
NEARLY = LONG.replace("in the morning", "in the evening")


def kept(rows: list[Completion], options: dict[str, object]) -> list[str]:
    """The ids of the rows that the filter alone keeps, one after another."""
    chain = filters({"kind": "duplicates", **options})
    return [row.id for row in rows if apply_filters(row, chain) is None]


def rows(*texts: str) -> list[Completion]:
    return [completion(text, question=f"q{number}", id_=str(number)) for number, text in enumerate(texts)]


def test_the_same_words_are_a_duplicate_whatever_their_form() -> None:
    one, other, third = rows("Don’t panic!", "don't   PANIC", "Do panic.")
    keep = open_filter({"near": None})
    keep.record_kept(one)
    assert keep(other) == "the same words as the kept 0"
    assert keep(third) is None


def test_a_near_duplicate_is_named_with_its_similarity() -> None:
    one, other = rows(LONG, NEARLY)
    keep = open_filter({})
    keep.record_kept(one)
    said = keep(other)
    assert said is not None
    similarity, rest = said.removeprefix("similarity ").split(" ", 1)
    assert rest == "to the kept 0"
    assert 0.8 <= float(similarity) < 1
    assert open_filter({"near": None})(other) is None


def test_the_most_alike_is_named() -> None:
    keep = open_filter({"near": 0.3})
    alike = [LONG.replace("sings", "hums"), NEARLY, LONG.replace("The kettle", "A pot")]
    for row in rows(*alike):
        keep.record_kept(row)
    said = keep(completion(f"{NEARLY} here", id_="new"))
    assert said is not None
    assert said.endswith("to the kept 1")


def test_a_row_is_no_duplicate_of_itself() -> None:
    (one,) = rows(LONG)
    keep = open_filter({})
    keep.record_kept(one)
    keep.record_kept(one)
    assert keep(one) is None


def test_what_was_rejected_is_not_compared_with() -> None:
    chain = filters({"kind": "duplicates"}, {"kind": "length", "max_chars": 5})
    long, again = rows(LONG, LONG)
    assert [apply_filters(long, chain), apply_filters(again, chain)] == [
        apply_filters(long, filters({"kind": "length", "max_chars": 5}))
    ] * 2


def test_of_completion_prompt_or_both() -> None:
    same_answer = [completion("Yes.", question=question) for question in ("Is it red?", "Was he there?")]
    same_prompt = [completion(text, question=q) for text, q in (("Red.", "Which colour?"), ("Blue.", "which colour"))]
    whole_row = [completion("Yes.", question=question) for question in ("Is it red?", "is it red")]
    verdicts = {
        of: [len(kept(pair, {"of": of})) == 1 for pair in (same_answer, same_prompt, whole_row)]
        for of in ("completion", "prompt", "both")
    }
    assert verdicts == {
        "completion": [True, False, True],
        "prompt": [False, True, True],
        "both": [False, False, True],
    }


def test_the_samples_of_a_prompt_have_no_prompt_that_repeats_another() -> None:
    samples = [completion(str(sample), question=LONG, sample=sample) for sample in range(3)]
    other = completion("x", question=NEARLY)
    assert kept([*samples, other], {"of": "prompt"}) == [one.id for one in samples]


@pytest.mark.parametrize("near", [0.1, 0.3, 0.5, 0.8, 0.9, 1.0])
@pytest.mark.parametrize("permutations", [16, 128, 1000])
def test_the_bands_find_what_is_near_enough(near: float, permutations: int) -> None:
    bands, width = Banding.for_threshold(near, permutations)
    assert bands * width <= permutations
    assert 1 - (1 - near**width) ** bands >= 0.99 or width == 1


def jaccard(one: str, other: str) -> float:
    mine, theirs = shingles(one), shingles(other)
    return len(mine & theirs) / len(mine | theirs)


texts = st.lists(st.sampled_from("abcdefgh"), min_size=8, max_size=40).map(" ".join)


@settings(max_examples=50)
@given(st.lists(texts, min_size=2, max_size=12), st.randoms(use_true_random=False))
def test_near_agrees_with_comparing_every_pair(drawn: list[str], chance: random.Random) -> None:
    """Against the true Jaccard similarity, with room for the estimate's error of about four standard deviations."""
    changed = [" ".join(word for word in text.split() if chance.random() > 0.03) for text in drawn]
    keep = Duplicates(DuplicatesOptions(near=0.6, permutations=512))
    room = 4 * 0.5 / 512**0.5
    before: list[str] = []
    for row in rows(*drawn, *changed):
        closest = max((jaccard(row.text, other) for other in before), default=0.0)
        rejected = keep(row) is not None
        if closest >= 0.6 + room:
            assert rejected
        if closest < 0.6 - room:
            assert not rejected
        if not rejected:
            keep.record_kept(row)
            before.append(row.text)


@settings(max_examples=50)
@given(st.lists(st.sampled_from([LONG, NEARLY, "Yes.", "yes", "No.", "One two three four"]), max_size=12), st.data())
def test_a_run_that_was_cut_goes_on_alike(drawn: list[str], data: st.DataObject) -> None:
    every = rows(*drawn)
    whole = kept(every, {"near": 0.7})
    cut = data.draw(st.integers(0, len(every)))
    chain = filters({"kind": "duplicates", "near": 0.7})
    first = [row for row in every[:cut] if apply_filters(row, chain) is None]
    resumed = filters({"kind": "duplicates", "near": 0.7})
    for row in first:
        resumed[0].check.record_kept(row)  # type: ignore[attr-defined]
    rest = [row for row in every[cut:] if apply_filters(row, resumed) is None]
    assert [row.id for row in first + rest] == whole


def test_what_was_kept_lies_in_a_file_that_is_gone_afterwards() -> None:
    """With the smallest of page caches everything still is found: it was not held in memory."""
    keep = open_filter({})
    connection: sqlite3.Connection = keep._kept
    connection.execute("PRAGMA cache_size = 1")
    draw = random.Random(0)
    every = rows(*(" ".join(draw.choices(LONG.split(), k=30)) for _ in range(500)))
    for row in every:
        keep.record_kept(row)
    assert all(keep(completion(row.text, id_="new")) == f"the same words as the kept {row.id}" for row in every)
    assert connection.execute("PRAGMA database_list").fetchall()[0][2] == ""
    del keep
    gc.collect()
    with pytest.raises(sqlite3.ProgrammingError, match="closed"):
        connection.execute("SELECT 1")


@pytest.mark.parametrize("text", ["", "...", "one", "one two", "東京はどこですか", "\ud800 lone", "a" * 10_000])
def test_any_text_has_a_fingerprint(text: str) -> None:
    one, other = rows(text, text)
    keep = open_filter({})
    assert keep(one) is None
    keep.record_kept(one)
    assert keep(other) == "the same words as the kept 0"


def test_a_threshold_of_one_asks_for_the_same_runs_of_words() -> None:
    one, other = rows("a b c a b c a b c", "a b c a b c")
    assert shingles(one.text) == shingles(other.text)
    assert kept([one, other], {"near": 1.0}) == ["0"]


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"near": 0}, "quality.duplicates.near"),
        ({"permutations": 1}, "quality.duplicates.permutations"),
        ({"of": "reference"}, "quality.duplicates.of"),
    ],
)
def test_a_wrong_option_is_refused(options: dict[str, object], words: str) -> None:
    with pytest.raises(RecipeError, match=words):
        open_filter(options)


def test_longer_bands_for_higher_thresholds() -> None:
    widths = [Banding.for_threshold(near, 128).rows for near in (0.2, 0.4, 0.6, 0.8, 1.0)]
    assert all(one < other for one, other in pairwise(widths))

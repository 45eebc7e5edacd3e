"""Of several samples, the first that the verifiers pass."""

import asyncio
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from stillhouse.errors import RecipeError
from stillhouse.labelling.engine import label
from stillhouse.quality.base import NamedFilter, Verdict, apply_filters, record_kept
from stillhouse.records import Completion
from tests.conftest import WORDS, MakeRecipe
from tests.quality.completions import completion, filters

NUMBER = {"kind": "reference-match", "how": "number"}


def samples(*texts: str, question: str = "q") -> list[Completion]:
    return [
        completion(text, question=question, sample=sample, reference="#### 42") for sample, text in enumerate(texts)
    ]


def verdicts(rows: list[Completion], *settings: dict[str, object]) -> list[str | None]:
    chain = filters(*settings)
    return [verdict.detail if (verdict := apply_filters(row, chain)) else None for row in rows]


def test_the_first_that_passes_is_kept() -> None:
    assert verdicts(samples("41", "42", "It is 42."), {"kind": "best-of", "verifiers": [NUMBER]}) == [
        "the verifier reference-match rejects it: '41' disagrees with the reference '#### 42' (number)",
        None,
        "this prompt already has keep=1 kept: sample 1",
    ]


def test_keep_more_than_one() -> None:
    kept = verdicts(samples("42", "41", "42", "42"), {"kind": "best-of", "keep": 2, "verifiers": [NUMBER]})
    assert [detail is None for detail in kept] == [True, False, True, False]
    assert kept[3] == "this prompt already has keep=2 kept: sample 0, 2"


def test_each_prompt_has_its_own_count() -> None:
    rows = [*samples("a", "b"), *samples("c", "d", question="another")]
    assert [detail is None for detail in verdicts(rows, {"kind": "best-of"})] == [True, False, True, False]


@pytest.mark.parametrize("first", [True, False])
def test_what_another_filter_rejects_does_not_count_wherever_it_stands(first: bool) -> None:
    chain: list[dict[str, object]] = [{"kind": "best-of"}, {"kind": "length", "max_chars": 3}]
    kept = verdicts(samples("long", "ok", "no"), *(chain if first else chain[::-1]))
    assert [detail is None for detail in kept] == [False, True, False]


def test_a_verifier_that_looks_back_is_told_too() -> None:
    rows = [*samples("yes"), *samples("Yes!", "no", question="another")]
    duplicates = {"kind": "duplicates", "near": None}
    assert [detail is None for detail in verdicts(rows, {"kind": "best-of", "verifiers": [duplicates]})] == [
        True,
        False,
        True,
    ]


def test_a_row_does_not_stand_in_its_own_way() -> None:
    chain = filters({"kind": "best-of"})
    one, other = samples("a", "b")
    record_kept(one, chain)
    assert apply_filters(one, chain) is None
    assert apply_filters(other, chain) is not None


@given(st.lists(st.lists(st.sampled_from(["41", "42"]), min_size=1, max_size=5), max_size=4), st.data())
def test_a_run_that_was_cut_goes_on_alike(drawn: list[list[str]], data: st.DataObject) -> None:
    rows = [row for number, texts in enumerate(drawn) for row in samples(*texts, question=str(number))]
    cut = data.draw(st.integers(0, len(rows)))

    def fresh() -> list[NamedFilter]:
        return filters({"kind": "best-of", "verifiers": [NUMBER]})

    def run(part: list[Completion], chain: list[NamedFilter]) -> list[Verdict | None]:
        return [apply_filters(row, chain) for row in part]

    before = run(rows[:cut], fresh())
    resumed = fresh()
    for row, verdict in zip(rows[:cut], before, strict=True):
        if verdict is None:
            record_kept(row, resumed)
    assert before + run(rows[cut:], resumed) == run(rows, fresh())


def test_in_a_run_one_sample_of_each_prompt_is_left(scripted_recipe: MakeRecipe) -> None:
    """The scripted teacher numbers its samples: the first has no number, so the verifier passes the second."""
    verifier = {"kind": "regex", "pattern": r"\(\d+\)$"}
    quality = [{"kind": "duplicates", "near": None}, {"kind": "best-of", "verifiers": [verifier]}]
    label_settings = {"samples": 3, "shard_size": 4, "max_rejected": 1.0}
    result = asyncio.run(label(scripted_recipe(label=label_settings, quality=quality)))
    texts = [
        batch.column("completion")[row].as_py()[0]["content"]
        for split in ("train", "validation")
        for batch in result.dataset.batches(split)
        for row in range(batch.num_rows)
    ]
    assert sorted(texts) == sorted(f"echo: Explain {word}. (1)" for word in WORDS)
    assert result.dataset.manifest.rejected == {"best-of": 24}


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"keep": 0}, "quality.best-of.keep"),
        ({"verifiers": [{"kind": "best-of"}]}, "best-of cannot be a verifier of best-of"),
        ({"verifiers": [{"kind": "refusl"}]}, "quality.best-of.verifiers.0.kind is 'refusl': there is no such kind"),
        ({"verifiers": [{"kind": "length", "max": 1}]}, "quality.length.max: there is no such setting"),
    ],
)
def test_a_wrong_option_is_refused(options: dict[str, Any], words: str) -> None:
    with pytest.raises(RecipeError) as caught:
        filters({"kind": "best-of", **options})
    assert words in str(caught.value)

"""Scores with their intervals, and differences between models on the same prompts."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import pytest
from sacrebleu.metrics.chrf import CHRF

from stillhouse.errors import RecipeError
from stillhouse.evaluation.measures.scoring import reference_score, score, select_prompts
from stillhouse.evaluation.metrics.base import NamedMetric, open_metrics
from stillhouse.evaluation.results import Interval
from stillhouse.recipe.evaluate import EvaluateSettings, MetricSettings
from stillhouse.records import Completion
from tests.quality.completions import completion

pytestmark = pytest.mark.numeric

REFERENCES = [f"word{number} and {number % 7} more" for number in range(200)]
RIGHT = REFERENCES
HALF = [one if number % 2 else "no" for number, one in enumerate(REFERENCES)]
NEARLY_HALF = [one if number % 2 and number > 20 else "no" for number, one in enumerate(REFERENCES)]  # 10 fewer


def metrics(*given: Any) -> list[NamedMetric]:
    return open_metrics([MetricSettings.model_validate(one) for one in given])


def test_scores_differences_and_what_is_kept() -> None:
    found = score(metrics("exact-match", "edit-distance"), [RIGHT, NEARLY_HALF, HALF], REFERENCES, student=2, teacher=0)
    assert [one["exact match"].mean for one in found.models] == [1, 0.45, 0.5]
    assert found.models[0]["exact match"] == Interval(1, 1, 1)
    half = found.models[2]["exact match"]
    assert (half.low, half.high) == pytest.approx(
        (0.5 - 1.96 * (0.25 / 200) ** 0.5, 0.5 + 1.96 * (0.25 / 200) ** 0.5), abs=0.01
    )
    assert [one["exact match"].mean for one in found.differences] == pytest.approx([-0.5, 0.05, 0])
    assert found.differences[2]["exact match"] == Interval(0, 0, 0)
    assert found.kept["exact match"].mean == 0.5
    assert set(found.kept) == {"exact match"}  # of an error rate nothing is kept
    assert found.differences[0]["word error rate"].low > 0


def test_a_difference_on_the_same_prompts_is_told_where_two_intervals_overlap() -> None:
    found = score(metrics("exact-match"), [NEARLY_HALF, HALF], REFERENCES, student=1, teacher=None)
    fewer, more = (one["exact match"] for one in found.models)
    assert fewer.high > more.low
    assert found.differences[0]["exact match"].low > 0
    assert found.kept == {}


def test_a_corpus_score_is_resampled_as_one() -> None:
    """The interval of chrF is that of sacrebleu's own corpus score over the same draws of whole rows."""
    found = score(metrics("chrf"), [HALF], REFERENCES, student=0, teacher=None).models[0]["chrF"]
    drawn = np.random.default_rng(0).integers(0, 200, size=(2000, 200))
    scores = [
        CHRF().corpus_score([HALF[place] for place in row], [[REFERENCES[place] for place in row]]).score
        for row in drawn[:100]
    ]
    assert found.mean == CHRF().corpus_score(HALF, [REFERENCES]).score
    assert np.quantile(scores, [0.025, 0.975]).tolist() == pytest.approx([found.low, found.high], abs=1.5)


def test_a_teacher_without_a_single_right_answer_keeps_nothing() -> None:
    found = score(metrics("exact-match"), [["no"] * 200, HALF], REFERENCES, student=1, teacher=0)
    assert found.kept == {}


def test_a_share_of_a_teacher_that_some_resample_finds_without_a_right_answer_is_not_told() -> None:
    """One right answer of 200: about a third of the resamples have none, and there is nothing to divide by."""
    rare = [REFERENCES[0], *["no"] * 199]
    found = score(metrics("exact-match"), [rare, HALF], REFERENCES, student=1, teacher=0)
    assert found.models[0]["exact match"].mean == 1 / 200
    assert found.kept == {}


def test_of_an_error_rate_nothing_is_kept_though_the_teacher_errs() -> None:
    given = metrics("exact-match", "edit-distance")
    found = score(given, [HALF, NEARLY_HALF], REFERENCES, student=1, teacher=0)
    assert found.models[0]["word error rate"].low > 0
    assert set(found.kept) == set(found.shares[0]) == {"exact match"}


def test_the_answers_to_prompts_without_a_reference_are_not_scored() -> None:
    rows = [row("a", "a kettle"), row("b", None), row("c", "an otter")]
    found = reference_score(rows, ["a kettle", "anything", "nothing"])
    assert found is not None and found.mean == 0.5
    assert reference_score(rows[1:2], ["anything"]) is None


@dataclass(frozen=True)
class Odd:
    """A metric of somebody's that goes wrong."""

    given: Sequence[tuple[float, ...]]
    name: str = "odd"
    lower_is_better: bool = False
    percent: bool = False
    digits: int = 1

    def statistics(self, answer: str, reference: str) -> tuple[float, ...]:
        return self.given[REFERENCES.index(reference) % len(self.given)]

    def score(self, totals: Any) -> Any:
        return totals[..., 0] / totals[..., 1]


def test_an_interval_is_that_of_the_resamples_alone() -> None:
    """The figure of all prompts is not one resample more."""
    numbers = np.random.default_rng(3).normal(5, 1, 200)
    metric = NamedMetric("odd", Odd([(number, 1.0) for number in numbers.tolist()]))
    found = score([metric], [RIGHT], REFERENCES, student=0, teacher=None).models[0]["odd"]
    drawn = np.random.default_rng(0).integers(0, 200, size=(2000, 200))
    expected = np.quantile(numbers[drawn].mean(axis=1), [0.025, 0.975])
    assert [found.low, found.high] == pytest.approx(expected.tolist(), rel=1e-9)


@pytest.mark.parametrize(
    ("given", "said"),
    [
        ([(1.0, 1.0), (1.0,)], r"the metric 'odd' returns \[1, 2\] statistics per answer"),
        ([()], r"the metric 'odd' returns \[0\] statistics per answer"),
        ([(1.0, 1.0), (float("nan"), 1.0)], r"returns \(nan, 1.0\) for the answer 'word1 and 1 more': .* finite"),
        ([(1.0, 0.0)], r"scores the sums \[200.0, 0.0\] as inf: scores must be finite"),
    ],
)  # fmt: skip
@pytest.mark.filterwarnings("ignore:divide by zero")
def test_a_metric_that_goes_wrong_is_named(given: list[tuple[float, ...]], said: str) -> None:
    with pytest.raises(RecipeError, match=said):
        score([NamedMetric("odd", Odd(given))], [RIGHT], REFERENCES, student=0, teacher=None)


def row(text: str, reference: str | None) -> Completion:
    return completion("answer", question=text, reference=reference)


def test_each_prompt_is_selected_once_by_its_first_row() -> None:
    rows = [row("a", None), row("a", None), row("b", "x"), row("c", " "), row("d", "y"), row("d", "y"), row("e", "z")]
    prompts = select_prompts(rows, EvaluateSettings(answers=3, metrics=("chrf",)))
    assert [one.prompt.messages[-1].content for one in prompts.rows] == ["a", "b", "c", "d", "e"]
    assert (prompts.answers_shown, prompts.with_reference, prompts.without_reference) == (3, (1, 3, 4), 2)
    assert prompts == select_prompts(rows, EvaluateSettings(answers=3))  # with metrics or without
    assert prompts.rows[0] is rows[0]
    assert select_prompts(rows, EvaluateSettings(answers=30)).answers_shown == 5

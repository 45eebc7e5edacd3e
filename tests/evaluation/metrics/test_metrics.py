"""Each metric against the package that defines it, or against plain arithmetic."""

import random
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from rouge_score.rouge_scorer import RougeScorer
from rouge_score.scoring import BootstrapAggregator
from sacrebleu.metrics.chrf import CHRF

from stillhouse.errors import RecipeError
from stillhouse.evaluation.metrics.base import Metric, NamedMetric, open_metrics
from stillhouse.recipe.evaluate import MetricSettings

WORDS = ["the", "cats", "ran", "running", "over", "a", "lazy", "dog.", "It's", "(hi)", "42", "café", "日本", "AH0", "K"]


def opened(*given: Any) -> list[NamedMetric]:
    return open_metrics([MetricSettings.model_validate(one) for one in given])


def pairs(number: int = 60) -> list[tuple[str, str]]:
    """Answers and references that share some words; some answers are empty, some are right."""
    chance = random.Random(3)
    made = []
    for _ in range(number):
        reference = " ".join(chance.choices(WORDS, k=chance.randint(1, 9)))
        kept = [word for word in reference.split() if chance.random() < 0.7]
        answer = chance.choice([reference, "", " ".join(kept + chance.choices(WORDS, k=2)), "\n".join(kept)])
        made.append((answer, reference))
    return made


def total(one: NamedMetric, rows: list[tuple[str, str]]) -> float:
    statistics = np.asarray([one.metric.statistics(answer, reference) for answer, reference in rows])
    return float(one.metric.score(statistics.sum(axis=0)))


def levenshtein(one: Any, other: Any) -> int:
    """The textbook's table."""
    row = list(range(len(other) + 1))
    for i, left in enumerate(one, start=1):
        before, row[0] = row[0], i
        for j, right in enumerate(other, start=1):
            before, row[j] = row[j], min(row[j] + 1, row[j - 1] + 1, before + (left != right))
    return row[-1]


@pytest.mark.parametrize(
    ("options", "answer", "reference", "right"),
    [
        ({}, " K  AE1\tT\n", "K AE1 T", True),
        ({}, "k AE1 T", "K AE1 T", False),
        ({}, "K AE1 T.", "K AE1 T", False),
        ({}, "KAE1 T", "K AE1 T", False),
        ({"ignore_case": True}, "STRASSE", "straße", True),
        ({"ignore_punctuation": True}, "«Yes!», he said…", "Yes he said", True),
        ({"ignore_punctuation": True}, "yes", "Yes", False),
        ({"ignore_case": True, "ignore_punctuation": True}, "yes.", "Yes", True),
    ],
)
def test_exact_match(options: dict[str, bool], answer: str, reference: str, right: bool) -> None:
    (one,) = opened({"kind": "exact-match", **options})
    assert total(one, [(answer, reference)]) == right
    assert total(one, [(answer, reference), ("no", "other")]) == right / 2


@pytest.mark.parametrize("unit", ["words", "characters"])
def test_the_error_rate_is_edits_by_the_length_of_all_references(unit: str) -> None:
    (one,) = opened({"kind": "edit-distance", "unit": unit})
    cut = str.split if unit == "words" else lambda text: " ".join(text.split())
    edits = sum(levenshtein(cut(answer), cut(reference)) for answer, reference in pairs())
    length = sum(len(cut(reference)) for _, reference in pairs())
    assert total(one, pairs()) == edits / length
    assert total(one, [("a b c d", "a")]) == (3 if unit == "words" else 6)  # more than all of it


@pytest.mark.parametrize("variant", ["rouge1", "rouge2", "rougeL", "rougeLsum"])
@pytest.mark.parametrize("use_stemmer", [False, True])
def test_rouge_is_the_mean_that_rouge_score_gives(variant: str, use_stemmer: bool) -> None:
    (one,) = opened({"kind": "rouge", "variant": variant, "use_stemmer": use_stemmer})
    scorer, together = RougeScorer([variant], use_stemmer=use_stemmer), BootstrapAggregator(n_samples=400)
    scores = [scorer.score(reference, answer) for answer, reference in pairs()]
    for score in scores:
        together.add_scores(score)
    assert total(one, pairs()) == pytest.approx(np.mean([score[variant].fmeasure for score in scores]), abs=1e-12)
    np.random.seed(0)  # which the aggregate draws from; it gives the median of its resamples
    assert total(one, pairs()) == pytest.approx(together.aggregate()[variant].mid.fmeasure, abs=0.01)


@pytest.mark.parametrize("options", [{}, {"word_order": 2}, {"char_order": 4, "beta": 3}, {"lowercase": True}])
def test_chrf_is_sacrebleus_corpus_score(options: dict[str, Any]) -> None:
    (one,) = opened({"kind": "chrf", **options})
    for seed in range(20):
        rows = random.Random(seed).sample(pairs(), k=30)
        answers, references = [answer for answer, _ in rows], [reference for _, reference in rows]
        assert total(one, rows) == CHRF(**options).corpus_score(answers, [references]).score  # the same float
    assert total(one, [("", "something")]) == CHRF(**options).corpus_score([""], [["something"]]).score == 0
    assert total(one, [("x", "x")]) == pytest.approx(100)


def test_token_f1_has_no_order() -> None:
    (one,) = opened("token-f1")
    assert total(one, [("dog a", "A dog.")]) == 1
    assert total(one, [("dog a", "A dog."), ("cat", "dog")]) == 0.5


@pytest.mark.parametrize("kind", ["exact-match", "edit-distance", "rouge", "chrf", "token-f1"])
def test_scores_are_of_every_row_of_totals(kind: str) -> None:
    (one,) = opened(kind)
    statistics = np.asarray([one.metric.statistics(answer, reference) for answer, reference in pairs()])
    many = statistics.reshape(6, 10, -1).sum(axis=1)  # (6, k)
    assert one.metric.score(many).tolist() == [float(one.metric.score(totals)) for totals in many]
    assert one.metric.score(many.reshape(2, 3, -1)).shape == (2, 3)
    assert np.isfinite(one.metric.score(np.zeros_like(many))).all()


def test_columns_have_names() -> None:
    given = ["exact-match", "edit-distance", "rouge", "chrf", {"kind": "chrf", "word_order": 2}]
    assert [one.name for one in opened(*given)] == ["exact match", "word error rate", "ROUGE-L", "chrF", "chrF++"]
    (one,) = opened({"kind": "edit-distance", "name": "phoneme error rate"})
    assert (one.name, one.metric.lower_is_better) == ("phoneme error rate", True)


@pytest.mark.parametrize(
    ("given", "said"),
    [
        (["exact-match", "rogue"], r"evaluate\.metrics\.1\.kind is 'rogue': there is no such kind\. Did you mean 'rouge'"),
        ([{"kind": "rouge", "varaint": "rouge1"}], r"rouge\.varaint: there is no such setting\. Did you mean 'variant'"),
        ([{"kind": "rouge", "variant": "rouge9"}], r"rouge\.variant is 'rouge9'"),
        ([{"kind": "edit-distance", "unit": "phonemes"}], r"edit-distance\.unit is 'phonemes': .*'words' or 'characters'"),
        ([{"kind": "chrf", "beta": 0}], r"chrf\.beta is 0: "),
        ([{"kind": "token-f1", "case": True}], r"token-f1\.case: there is no such setting"),
        (["rouge", "rouge"], r"metrics\.1: the metric 'ROUGE-L' is listed twice"),
    ],
)  # fmt: skip
def test_what_is_wrong_is_named(given: list[Any], said: str) -> None:
    with pytest.raises(RecipeError, match=said):
        opened(*given)


def test_nothing_is_logged_or_fetched() -> None:
    """absl would set up the root logger, and nltk could look for its data."""
    probe = (
        "import logging, socket\n"
        "def refuse(*given): raise OSError('no network')\n"
        "socket.socket.connect = refuse\n"
        "from stillhouse.recipe.evaluate import MetricSettings\n"
        "from stillhouse.evaluation.metrics.base import open_metrics\n"
        "given = [{'kind': 'rouge', 'variant': 'rougeLsum', 'use_stemmer': True}, {'kind': 'chrf', 'word_order': 2}]\n"
        "metrics = open_metrics([MetricSettings.model_validate(one) for one in given])\n"
        "print([one.metric.statistics('Dogs ran. They fell.', 'A dog ran') for one in metrics], logging.root.handlers)"
    )
    done = subprocess.run([sys.executable, "-W", "error", "-c", probe], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert done.stdout.strip().endswith("[]")
    assert not done.stderr


def test_the_example_of_the_documentation_is_a_metric() -> None:
    page = (Path(__file__).parents[3] / "docs/evaluation.md").read_text()
    names: dict[str, Any] = {}
    exec(page.split("```python\n")[1].split("```")[0], names)
    metric = names["open_metric"]({})
    assert isinstance(metric, Metric)
    assert total(NamedMetric(metric.name, metric), [("abc", "ab"), ("", "abcd")]) == 0.5

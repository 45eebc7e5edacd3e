"""What the training benchmark reckons with, apart from any model."""

import json
import math
from dataclasses import asdict, replace
from pathlib import Path

import numpy as np
import pytest
import torch

from benchmarks import train_memory
from benchmarks.shared import in_turn
from benchmarks.train_loss import labels_of as random_labels
from benchmarks.train_memory import CASES, fitting
from benchmarks.train_objectives import SMALL, WHOLE, Student, plan_of, recovered
from benchmarks.train_speed import BATCH, STORED, WAYS, Measured, Rows, _section, epochs_to_pay
from benchmarks.train_students import labels_of, renormalised

LOGITS = torch.randn(7, 40, generator=torch.Generator().manual_seed(3)) * 3


def test_what_is_recovered_is_a_share_of_the_gain_in_each_seed() -> None:
    kls = {0: {"cross-entropy": 3.0, "x": 2.25, "full": 2.0}, 1: {"cross-entropy": 4.0, "x": 4.5, "full": 3.0}}
    students = [Student("s", way, seed, kl, 1, 1.0) for seed, ways in kls.items() for way, kl in ways.items()]
    assert recovered(students, "x") == [75.0, -50.0]
    assert recovered(students, "full") == [100.0, 100.0]


@pytest.mark.parametrize("plan", [SMALL, WHOLE])
def test_a_plan_survives_its_way_into_the_other_process(plan: object) -> None:
    assert plan_of(json.dumps(asdict(plan))) == plan  # type: ignore[call-overload]


def test_renormalised_labels_leave_nothing_for_other_tokens() -> None:
    labels = renormalised(LOGITS, 5)
    probabilities = np.exp(labels.logprobs.reshape(7, 5))
    assert np.allclose(probabilities.sum(axis=1), 1, atol=1e-6)
    assert np.array_equal(labels.token_ids.reshape(7, 5), LOGITS.topk(5).indices.numpy())
    full = LOGITS.softmax(-1).gather(-1, LOGITS.topk(5).indices).numpy()
    assert np.allclose(probabilities, full / full.sum(axis=1, keepdims=True), atol=1e-6)
    assert np.isneginf(labels.tail_logprob).all()


def test_the_draws_of_a_seed_do_not_depend_on_the_other_seeds() -> None:
    _, both = labels_of("sampled-50", LOGITS, [0, 1], number=4)
    [alone] = labels_of("sampled-50", LOGITS, [1], number=4)
    [other] = labels_of("sampled-50", LOGITS, [2], number=4)
    assert both is not None and alone is not None and other is not None
    assert np.array_equal(both.token_ids, alone.token_ids) and np.array_equal(both.logprobs, alone.logprobs)
    assert not np.array_equal(alone.token_ids, other.token_ids)
    counts = np.exp(alone.logprobs) * 50
    assert (
        np.allclose(counts, counts.round(), atol=1e-3) and np.add.reduceat(counts, alone.offsets[:-1]).round()[0] == 50
    )


def test_tokens_are_counted_over_epochs_with_their_short_last_step() -> None:
    lengths = [(10 + number, number) for number in range(2 * BATCH + 3)]
    steps = [lengths[:BATCH], lengths[BATCH : 2 * BATCH], lengths[2 * BATCH :]]
    wanted = sum(sum(pair) for step in [steps[2], steps[0], steps[1], steps[2], steps[0]] for pair in step)
    assert Rows(Path(), lengths).tokens(first=2, count=5) == wanted


@pytest.mark.parametrize(
    ("labelling", "stored", "live", "epochs"),
    [(30.0, 20.0, 40.0, 1.5), (5.0, 10.0, 40.0, 5 / 30), (1.0, 3.0, 3.0, math.inf)],
)
def test_stored_labels_pay_when_the_epochs_have_saved_what_they_cost(
    labelling: float, stored: float, live: float, epochs: float
) -> None:
    assert epochs_to_pay(labelling, stored, live) == epochs


def test_the_speed_section_names_every_way_and_says_when_labels_pay() -> None:
    """At twice the speed of a live teacher, which takes 10 s an epoch: labels of 7.5 s have paid after 1.5."""
    rows = Rows(Path(), [(40, 60)] * 10)
    rates = {way.name: 200.0 if way in STORED else 100.0 for way in WAYS}
    result = {name: Measured(rate, 1.0, 1 << 30, 2.0, {"trl": "1"}) for name, rate in rates.items()}
    text = _section([result] * 3, [{"top-k": 7.5, "sampled": 5.0}] * 3, rows, 3, 12)
    assert all(f"| {way.name} | {rates[way.name]:,.0f} |" in text for way in WAYS)
    assert "| stored `top-k`, 32 | 7.5 | 5.0 | 10.0 | 1.5 | 1.5, 1.5, 1.5 |" in text
    assert "| stored `sampled`, 50 draws | 5.0 | 5.0 | 10.0 | 1.0 | 1.0, 1.0, 1.0 |" in text
    assert "| stored `top-k`, 32 / cross-entropy alone | 2.00 | 2.00 | 2.00 | 0.9 |" in text
    assert "KL alone / TRL `GKDTrainer`, live teacher, KL alone | 1.00" in text


def test_no_way_always_goes_first_and_all_have_their_turn() -> None:
    orders = [in_turn("abc", number) for number in range(6)]
    assert orders[:3] == [["a", "b", "c"], ["b", "c", "a"], ["c", "a", "b"]]
    assert [order[0] for order in orders] == [*"abcabc"]
    ways = [in_turn(WAYS, number * 3) for number in range(len(WAYS))]
    assert {order[0].name for order in ways} == {way.name for way in WAYS}
    assert all(sorted(way.name for way in order) == sorted(way.name for way in WAYS) for order in ways)


def test_fewer_tokens_are_taken_where_memory_is_short(monkeypatch: pytest.MonkeyPatch) -> None:
    case = CASES[1]
    monkeypatch.setattr(train_memory, "_meminfo", lambda _: str(200 << 20))  # KiB: 200 GiB
    assert fitting(case) == case
    monkeypatch.setattr(train_memory, "_meminfo", lambda _: str(20 << 20))
    less = fitting(case)
    assert 0 < less.tokens < case.tokens and less.tokens % case.chunk == 0


@pytest.mark.parametrize("kind", ["top-k", "sampled"])
def test_random_labels_are_distributions_of_distinct_tokens(kind: str) -> None:
    case = replace(CASES[1], labels=kind, tokens=9, vocabulary=100, entries=6)
    labels = random_labels(case, torch.Generator().manual_seed(0))
    assert labels is not None and labels.token_ids.max() < 100
    assert all(len(set(row)) == 6 for row in labels.token_ids.tolist())
    assert torch.allclose(labels.logprobs.exp().sum(-1) + labels.tail_logprob.exp(), torch.ones(9))

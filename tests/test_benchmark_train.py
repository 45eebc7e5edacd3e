"""What the training benchmark reckons with, apart from any model."""

import json
from dataclasses import asdict, replace
from pathlib import Path

import numpy as np
import pytest
import torch

from tests.benchmarks import train_memory
from tests.benchmarks.train_loss import labels_of as random_labels
from tests.benchmarks.train_memory import CASES, fitting
from tests.benchmarks.train_objectives import SMALL, WHOLE, Student, plan_of, recovered
from tests.benchmarks.train_speed import BATCH, Rows
from tests.benchmarks.train_students import labels_of, renormalised

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

"""Examples by index: what the file holds, decoded once an epoch, in an order of seed and epoch alone."""

from __future__ import annotations

import pickle
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from accelerate.data_loader import prepare_data_loader, skip_first_batches
from transformers import TrainerState

from stillhouse.dataset.encodings import PackedLabels
from stillhouse.dataset.store import Dataset
from stillhouse.errors import TrainingError
from stillhouse.evaluation.measures.processes import fresh_processes
from stillhouse.models.load import LanguageModel, encode_completion, encode_prompt, load_language_model
from stillhouse.records import EncodingName
from stillhouse.student.data.batches import collator
from stillhouse.student.data.completion_example import example_of, packed
from stillhouse.student.data.epoch_order import LengthGroupedSampler, ShuffledSampler
from stillhouse.student.data.examples import Examples, read_examples
from stillhouse.student.data.rows import Example
from stillhouse.student.training.trainer import _EpochCallback
from tests.labelled_rows import VOCABULARY, completion, numbered, without_labels, write

SIZES = [7, 5, 9, 4, 8, 6]
ENCODINGS: list[EncodingName] = ["top-k", "sampled"]


def model_of(vocabulary: int) -> Any:
    """All that reading token ids asks of a model."""
    return SimpleNamespace(model=SimpleNamespace(config=SimpleNamespace(vocab_size=vocabulary)))


def read(dataset: Dataset, *, soft: bool = True, max_length: int = 100, **more: Any) -> Examples:
    lm = more.pop("lm", model_of(VOCABULARY))
    return read_examples(dataset, "train", lm, soft=soft, by_text=False, max_length=max_length, **more)


def same(one: Example, other: Example) -> bool:
    assert (one.soft is None) == (other.soft is None)
    pairs = [(one.prompt, other.prompt), (one.completion, other.completion)]
    if one.soft is not None and other.soft is not None:
        pairs += [(getattr(one.soft, name), getattr(other.soft, name)) for name in PackedLabels.__dataclass_fields__]
    return all(np.array_equal(*pair) for pair in pairs)


@pytest.fixture(params=ENCODINGS)
def dataset(request: pytest.FixtureRequest, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Dataset:
    """39 rows in six row groups."""
    return write(tmp_path, numbered(SIZES, request.param), request.param, monkeypatch)


def two_groups(examples: Examples) -> int:
    """Bytes that hold two of the row groups, whichever, and no four."""
    return 2 * max(group.nbytes for group in examples._rows.groups)


def decoded_groups(examples: Examples) -> list[int]:
    """Will list the row groups that are decoded from now on."""
    decoded: list[int] = []
    cache = examples._rows._cache  # type: ignore[attr-defined]
    decode = cache._decode
    cache._decode = lambda number: decoded.append(number) or decode(number)
    return decoded


def test_an_example_is_what_was_written(dataset: Dataset) -> None:
    assert dataset.manifest.soft is not None
    examples = read(dataset)
    assert len(examples) == sum(SIZES)
    for number in np.random.default_rng(0).permutation(len(examples)).tolist():
        expected = example_of(
            completion(number, dataset.manifest.soft.encoding), model_of(VOCABULARY), soft=True, by_text=False
        )
        assert same(examples[number], expected)
        assert examples.lengths[number] == len(expected)
    with pytest.raises(IndexError):
        examples[len(examples)]


def test_a_row_that_is_too_long_is_left_out(dataset: Dataset) -> None:
    everything = read(dataset)
    some = read(dataset, max_length=10)
    fitting = np.flatnonzero(everything.lengths <= 10)
    assert 0 < len(some) == len(fitting) == len(everything) - some.too_long
    assert all(same(some[place], everything[int(number)]) for place, number in enumerate(fitting))
    assert sorted(ShuffledSampler(some, 0)) == list(range(len(some)))


@pytest.mark.parametrize("order", ["random", "by length"])
def test_an_epoch_decodes_each_row_group_once_and_holds_few(dataset: Dataset, order: str) -> None:
    examples = read(dataset, capacity=two_groups(read(dataset)))
    decoded = decoded_groups(examples)
    sampler = ShuffledSampler(examples, 0) if order == "random" else LengthGroupedSampler(examples, 2, 0)
    seen = []
    for index in sampler:
        seen.append(index)
        assert len(examples[index]) == examples.lengths[index]
        cache = examples._rows._cache  # type: ignore[attr-defined]
        assert sum(examples._rows.groups[number].nbytes for number in cache._cached) <= examples._capacity
    assert sorted(seen) == list(range(len(examples)))
    assert sorted(decoded) == list(range(len(SIZES)))


@pytest.mark.parametrize("kind", ["random", "by length"])
def test_the_order_is_of_seed_and_epoch_alone(dataset: Dataset, kind: str) -> None:
    def order(seed: int, epoch: int, capacity: int) -> list[int]:
        examples = read(dataset, capacity=capacity)
        sampler = ShuffledSampler(examples, seed) if kind == "random" else LengthGroupedSampler(examples, 2, seed)
        sampler.set_epoch(epoch)
        return list(sampler)

    for capacity in (two_groups(read(dataset)), 1 << 30):
        assert order(1, 3, capacity) == order(1, 3, capacity)
        assert order(1, 3, capacity) != order(1, 4, capacity) != order(2, 4, capacity)
        assert len(order(-1, 0, capacity)) == sum(SIZES)


def test_what_fits_into_one_window_is_shuffled_as_a_whole(dataset: Dataset) -> None:
    """Every row is as likely in the first place as in any other: a chi-square over 2,000 epochs."""
    sampler = ShuffledSampler(read(dataset), 0)
    rounds, rows = 2000, sum(SIZES)
    counts = np.zeros(rows)
    for epoch in range(rounds):
        sampler.set_epoch(epoch)
        counts[next(iter(sampler))] += 1
    expected = rounds / rows
    assert ((counts - expected) ** 2 / expected).sum() < 80  # 38 degrees of freedom: p < 0.0001


def test_rows_of_like_lengths_side_by_side(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    dataset = write(tmp_path, numbered([40] * 6, "sampled"), "sampled", monkeypatch)
    for capacity in (two_groups(read(dataset)), 1 << 30):
        examples = read(dataset, capacity=capacity)

        def padded(order: list[int], lengths: Any = examples.lengths) -> int:
            return sum(3 * int(lengths[order[at : at + 3]].max()) for at in range(0, len(order), 3))

        grouped, random = LengthGroupedSampler(examples, 3, 0), ShuffledSampler(examples, 0)
        orders = []
        for epoch in range(5):
            grouped.set_epoch(epoch)
            random.set_epoch(epoch)
            orders.append((list(grouped), list(random)))
        assert all(examples.lengths[order[0]] == examples.lengths.max() for order, _ in orders)
        assert sum(padded(order) for order, _ in orders) < 0.9 * sum(padded(order) for _, order in orders)


def test_worker_processes_read_the_same(dataset: Dataset) -> None:
    examples = read(dataset)
    sampler, collate = ShuffledSampler(examples, 5), collator(0)
    order = list(sampler)
    expected = [collate([examples[index] for index in order[at : at + 4]]) for at in range(0, len(order), 4)]
    with fresh_processes():  # its fork server stays, and has imported torch
        pass
    loader: Any = torch.utils.data.DataLoader(
        examples,  # type: ignore[arg-type]
        batch_size=4,
        sampler=sampler,
        collate_fn=collate,
        num_workers=2,
        multiprocessing_context="forkserver",  # a process that is forked from one with Prefect in it ends with status 1
    )
    for batch, wanted in zip(loader, expected, strict=True):
        assert all(torch.equal(batch[key], wanted[key]) for key in wanted)
    copy = pickle.loads(pickle.dumps(examples))  # as a spawned worker gets it
    assert len(copy._rows._cache) == 0
    assert same(copy[3], examples[3])


def test_two_processes_go_on_within_an_epoch(dataset: Dataset) -> None:
    """What one of them meets after a resume is what it would have met; accelerate itself leaves the epoch at 0."""
    examples = read(dataset)

    def batches(skipped: int, epoch: float) -> list[list[int]]:
        sampler = ShuffledSampler(examples, 0)
        loader = torch.utils.data.DataLoader(range(len(examples)), batch_size=2, sampler=sampler, collate_fn=list)  # type: ignore[arg-type,var-annotated]
        shared = prepare_data_loader(loader, num_processes=2, process_index=1, put_on_device=False)
        if skipped:
            shared = skip_first_batches(shared, skipped)
        state = TrainerState(epoch=epoch)
        _EpochCallback(sampler).on_epoch_begin(None, state, None)  # type: ignore[arg-type]
        shared.set_epoch(int(epoch))
        return list(shared)

    assert batches(3, epoch=2.3) == batches(0, epoch=2.0)[3:]


# -------------------------------------------------------------------------------------------------------- what is refused


@pytest.mark.parametrize("encoding", ENCODINGS)
@pytest.mark.parametrize("tokens", [True, False])
def test_a_row_without_labels_is_refused_before_training(
    encoding: EncodingName, tokens: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    groups = numbered([3, 4], encoding)
    groups[1][2] = without_labels(groups[1][2], tokens=tokens)
    dataset = write(tmp_path, groups, encoding, monkeypatch)
    with pytest.raises(TrainingError, match=r"row row-5 has no soft labels\. Label again with label\.soft set"):
        read(dataset)


def test_a_dataset_without_labels_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    dataset = write(tmp_path, numbered([3], None), None, monkeypatch)
    with pytest.raises(TrainingError, match="dataset random/v001 has no soft labels"):
        read(dataset)


def test_a_token_that_the_student_does_not_know_is_refused_before_training(dataset: Dataset) -> None:
    rows = [completion(number, dataset.manifest.soft.encoding) for number in range(sum(SIZES))]  # type: ignore[union-attr]
    highest = []
    for row in rows:
        assert row.trace is not None
        assert row.trace.soft is not None
        ids = (row.trace.prompt_token_ids, row.trace.completion_token_ids, packed(row.trace.soft).token_ids)
        highest.append(max(int(each.max()) for each in ids))
    assert len(read(dataset, lm=model_of(max(highest) + 1))) == len(rows)
    unknown = max(highest)
    with pytest.raises(
        TrainingError, match=rf"has the token {unknown}, and the student has only {unknown} tokens"
    ) as caught:
        read(dataset, lm=model_of(unknown))
    named = int(str(caught.value).split()[1].removeprefix("row-"))
    assert highest[named] == unknown


# ------------------------------------------------------------------------------------------------------------------ text


@pytest.fixture(scope="module")
def lm(tiny_model: Path) -> LanguageModel:
    return load_language_model(tiny_model, device="cpu")


def test_rows_without_tokens_are_tokenised_and_those_with_tokens_are_not(
    lm: LanguageModel, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    groups = numbered([3, 4], "top-k", text="some words")
    groups[1][2] = without_labels(groups[1][2], tokens=False)
    examples = read(write(tmp_path, groups, "top-k", monkeypatch), soft=False, lm=lm)
    for number, row in enumerate(row for group in groups for row in group):
        assert examples[number].soft is None
        if row.trace is not None:
            assert examples[number].prompt.tolist() == row.trace.prompt_token_ids.tolist()
            assert examples[number].completion.tolist() == row.trace.completion_token_ids.tolist()
        else:
            assert examples[number].prompt.tolist() == encode_prompt(lm.tokenizer, row.prompt.messages)
            assert examples[number].completion.tolist() == encode_completion(lm, "some words")
        assert examples.lengths[number] == len(examples[number])


def test_text_is_read_by_row_group_too(lm: LanguageModel, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    dataset = write(tmp_path, numbered(SIZES, None), None, monkeypatch)
    examples = read(dataset, soft=False, lm=lm)
    examples = read(dataset, soft=False, lm=lm, capacity=two_groups(examples))
    decoded = decoded_groups(examples)
    assert sum(len(examples[index]) for index in ShuffledSampler(examples, 0)) == int(examples.lengths.sum())
    assert sorted(decoded) == list(range(len(SIZES)))
    assert len(examples._rows._cache) <= 3  # type: ignore[attr-defined]

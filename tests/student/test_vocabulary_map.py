"""Rows of the teacher's tokens read for a student with a part of them: against dictionaries and dense distributions."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from stillhouse.dataset.encodings import PackedLabels
from stillhouse.dataset.store import Dataset
from stillhouse.errors import TrainingError
from stillhouse.evaluation.measures.distance import kl_over_reduced_vocabulary, labels_over_reduced_vocabulary
from stillhouse.models.files import ModelFiles
from stillhouse.models.load import encode_completion, encode_prompt, load_language_model
from stillhouse.records import EncodingName
from stillhouse.student.data.completion_example import example_of, packed
from stillhouse.student.data.vocabulary import labels_for_student
from stillhouse.student.vocabulary_map import (
    FILE,
    VocabularyMap,
    copy_vocabulary_map,
    read_vocabulary_map,
    shares_tokenizer,
    vocabulary_map_for,
)
from tests.conftest import make_tiny_model
from tests.labelled_rows import VOCABULARY, completion, numbered, without_labels, write
from tests.student.data.test_examples import model_of, read
from tests.student.data.test_vocabulary import (
    POSITIONS,
    close_to_labels,
    logits,
    sampled_labels,
    top_k_labels,
    value_and_gradient,
)

pytestmark = [pytest.mark.numeric, pytest.mark.usefixtures("one_thread")]

TEACHER = 12  # tokens
parts = st.sets(st.integers(0, TEACHER - 1), min_size=2)


def vocabulary_map(kept: set[int] | list[int]) -> VocabularyMap:
    return VocabularyMap(np.array(sorted(kept), dtype=np.int32), "teacher's", "student's")


def brute_force(teacher: Tensor, student: Tensor, k: int, kept: list[int], temperature: float) -> tuple[Tensor, Tensor]:
    """Position by position over plain probabilities: listed tokens that were kept, and all others as one outcome."""
    leaf = student.clone().requires_grad_()
    total = torch.zeros((), dtype=torch.float64)
    for p, own in zip(teacher.softmax(-1), leaf.softmax(-1), strict=True):
        q = dict(zip(kept, own, strict=True))  # by the teacher's ids
        listed = [token for token in p.argsort(descending=True)[:k].tolist() if token in q]
        pairs = [(p[token], q[token]) for token in listed]
        if len(listed) < len(kept):
            others = [token for token in range(TEACHER) if token not in listed]
            pairs.append((p[others].sum(), torch.stack([q[token] for token in others if token in q]).sum()))
        both = torch.stack([torch.stack(pair) for pair in pairs]) ** (1 / temperature)
        p_, q_ = (both / both.sum(0)).T
        total = total + temperature**2 * (p_ * (p_ / q_).log()).sum()
    return total.detach(), torch.autograd.grad(total, leaf)[0]


@given(
    seed=st.integers(0, 10_000),
    kept=parts,
    k=st.integers(1, TEACHER - 1),
    temperature=st.sampled_from([1.0, 2.0]),
)
def test_top_k_labels_of_tokens_that_are_gone_are_part_of_the_rest(
    seed: int, kept: set[int], k: int, temperature: float
) -> None:
    teacher, student = logits(seed, TEACHER), logits(seed + 1, len(kept))
    known = labels_for_student(top_k_labels(teacher, k), len(kept), "top-k", vocabulary_map(kept))
    assert known.token_ids.max() < len(kept)
    value, gradient = value_and_gradient(known, student, temperature)
    expected, wanted = brute_force(teacher, student, k, sorted(kept), temperature)
    close_to_labels(value, expected, POSITIONS * temperature**2)
    close_to_labels(gradient, wanted, temperature)


@given(draws=st.lists(st.integers(0, TEACHER - 1), min_size=1, max_size=30), seed=st.integers(0, 10_000), kept=parts)
def test_draws_of_tokens_that_are_gone_are_dropped(draws: list[int], seed: int, kept: set[int]) -> None:
    student = logits(seed, len(kept))[:1]
    known = labels_for_student(sampled_labels(tuple(draws)), len(kept), "sampled", vocabulary_map(kept))
    _, gradient = value_and_gradient(known, student)
    left = [sorted(kept).index(token) for token in draws if token in kept]
    share = torch.bincount(torch.tensor(left, dtype=torch.int64), minlength=len(kept)).double() / max(len(left), 1)
    wanted = student.softmax(-1) - share if left else torch.zeros_like(student)
    close_to_labels(gradient, wanted, 1.0)


@given(kept=st.sets(st.integers(0, 50), min_size=1), ids=st.lists(st.integers(-1, 60), max_size=20))
def test_ids_by_a_dictionary(kept: set[int], ids: list[int]) -> None:
    expected = {token: number for number, token in enumerate(sorted(kept))}
    found = vocabulary_map(kept).student_ids(np.array(ids, dtype=np.int32))
    assert found.tolist() == [expected.get(token, -1) for token in ids]
    assert found.dtype == np.int32


@given(seed=st.integers(0, 10_000), kept=parts)
def test_the_distance_is_over_common_tokens_and_the_most_likely_one_over_all(seed: int, kept: set[int]) -> None:
    known, own = logits(seed, TEACHER).log_softmax(-1), logits(seed + 1, len(kept)).log_softmax(-1)
    kl, agrees, lost = kl_over_reduced_vocabulary(own, known, vocabulary_map(kept))
    for position in range(POSITIONS):
        p, q = known[position].exp(), dict(zip(sorted(kept), own[position].exp(), strict=True))
        mass = sum(float(p[token]) for token in kept)
        brute = sum(float(p[token]) / mass * np.log(float(p[token]) / mass / float(q[token])) for token in kept)
        assert float(kl[position]) == pytest.approx(brute, abs=1e-9)
        assert float(lost[position]) == pytest.approx(1 - mass, abs=1e-9)
        assert bool(agrees[position]) == (int(p.argmax()) == max(q, key=lambda token: float(q[token])))


@given(seed=st.integers(0, 10_000), kept=parts, k=st.integers(1, TEACHER))
def test_what_stored_labels_say_of_tokens_that_are_gone(seed: int, kept: set[int], k: int) -> None:
    p = logits(seed, TEACHER).softmax(-1)
    likeliest, mass = labels_over_reduced_vocabulary(top_k_labels(logits(seed, TEACHER), k), vocabulary_map(kept))
    expected = {token: number for number, token in enumerate(sorted(kept))}
    assert likeliest.tolist() == [expected.get(token, -1) for token in p.argmax(-1).tolist()]
    listed = p.argsort(descending=True)[:, :k]
    gone = [sum(float(p[at, one]) for one in listed[at].tolist() if one not in kept) for at in range(POSITIONS)]
    assert mass.tolist() == pytest.approx(gone, abs=1e-6)


def test_positions_without_labels_have_no_most_likely_token() -> None:
    nothing = np.empty(0, dtype=np.int32), np.empty(0, dtype=np.float32)
    empty = PackedLabels(*nothing, np.zeros(3, dtype=np.int64), np.full(2, -np.inf, dtype=np.float32))
    likeliest, mass = labels_over_reduced_vocabulary(empty, vocabulary_map([0, 1]))
    assert likeliest.tolist() == [-1, -1]
    assert mass.tolist() == [0.0, 0.0]


# ------------------------------------------------------------------------------------------------------------- from files


def of_known_tokenizer(dataset: Dataset) -> Dataset:
    own = replace(dataset.manifest.teacher, tokenizer_sha256="teacher's")
    return replace(dataset, manifest=dataset.manifest.model_copy(update={"teacher": own}))


def kept_by(numbers: range, encoding: EncodingName) -> list[int]:
    """The tokens of the texts of these rows, and every third of all others."""
    traces = [row.trace for row in (completion(number, encoding) for number in numbers) if row.trace is not None]
    texts = {
        token for one in traces for ids in (one.prompt_token_ids, one.completion_token_ids) for token in ids.tolist()
    }
    return sorted(texts | {*range(0, VOCABULARY, 3)})


@pytest.mark.parametrize("encoding", ["top-k", "sampled"])
def test_rows_are_renumbered_when_they_are_read(
    encoding: EncodingName, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    dataset = of_known_tokenizer(write(tmp_path, numbered([6, 5], encoding), encoding, monkeypatch))
    kept = kept_by(range(11), encoding)
    own, lm = vocabulary_map(kept), model_of(len(kept))
    new = {token: number for number, token in enumerate(kept)}
    hard = read(dataset, lm=lm, vocabulary_map=own, soft=False)
    for number, example in enumerate(read(dataset, lm=lm, vocabulary_map=own)):  # type: ignore[arg-type,var-annotated]
        row = completion(number, encoding)
        alone = example_of(row, lm, soft=True, by_text=False, vocabulary_map=own)
        assert row.trace is not None
        assert row.trace.soft is not None
        for one in (example, alone, hard[number]):
            assert one.prompt.tolist() == [new[token] for token in row.trace.prompt_token_ids.tolist()]
            assert one.completion.tolist() == [new[token] for token in row.trace.completion_token_ids.tolist()]
        labels = [new.get(token, -1) for token in packed(row.trace.soft).token_ids.tolist()]
        assert -1 in labels or number
        assert example.soft is not None
        assert alone.soft is not None
        assert example.soft.token_ids.tolist() == alone.soft.token_ids.tolist() == labels
        np.testing.assert_array_equal(example.soft.tail_logprob, alone.soft.tail_logprob)


@pytest.mark.parametrize("soft", [True, False])
def test_a_text_with_a_token_that_is_gone_is_refused_before_training(
    soft: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The start was made without some of the rows."""
    dataset = of_known_tokenizer(write(tmp_path, numbered([6, 5], "top-k"), "top-k", monkeypatch))
    gone = _tokens(10)[-1]
    first = next(number for number in range(11) if gone in _tokens(number))
    own = vocabulary_map([token for token in kept_by(range(11), "top-k") if token != gone])
    lm = model_of(len(own))
    expected = rf"row row-{first} has the teacher's token {gone}, which is not among the student's {len(own)} tokens"
    with pytest.raises(TrainingError, match=expected) as caught:
        read(dataset, lm=lm, vocabulary_map=own, soft=soft)
    assert "Set student.init to {from: teacher, vocabulary: used}" in str(caught.value)
    with pytest.raises(TrainingError, match=expected):
        example_of(completion(first, "top-k"), lm, soft=soft, by_text=False, vocabulary_map=own)


def test_rows_of_text_among_rows_with_tokens(tiny_model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Text is tokenised by the student's own tokenizer, and token ids are renumbered."""
    lm = load_language_model(tiny_model, device="cpu")
    groups = numbered([3, 4], "top-k", text="some words")
    groups[1][2] = without_labels(groups[1][2], tokens=False)
    dataset = of_known_tokenizer(write(tmp_path, groups, "top-k", monkeypatch))
    kept = kept_by(range(7), "top-k")
    examples = read(dataset, soft=False, lm=lm, vocabulary_map=vocabulary_map(kept))
    for number, row in enumerate(row for group in groups for row in group):
        if row.trace is None:
            assert examples[number].prompt.tolist() == encode_prompt(lm.tokenizer, row.prompt.messages)
            assert examples[number].completion.tolist() == encode_completion(lm, "some words")
        else:
            assert [kept[token] for token in examples[number].prompt.tolist()] == row.trace.prompt_token_ids.tolist()
    without = vocabulary_map([token for token in kept if token != _tokens(0)[0]])
    with pytest.raises(TrainingError, match=f"row row-0 has the teacher's token {_tokens(0)[0]}, which is not"):
        read(dataset, soft=False, lm=lm, vocabulary_map=without)


def _tokens(number: int) -> list[int]:
    trace = completion(number, "top-k").trace
    assert trace is not None
    return [*trace.prompt_token_ids.tolist(), *trace.completion_token_ids.tolist()]


def test_the_file_belongs_to_two_tokenizers(tmp_path: Path) -> None:
    student = ModelFiles("student", make_tiny_model(tmp_path / "student"))
    assert read_vocabulary_map(student.folder) is None
    assert shares_tokenizer(student, student.tokenizer_sha256)
    assert shares_tokenizer(student, None)
    assert not shares_tokenizer(student, "teacher's")
    written = VocabularyMap(np.array([0, 2, 5], dtype=np.int32), "teacher's", student.tokenizer_sha256)
    written.write(student.folder)
    found = vocabulary_map_for(student, "teacher's")
    assert found is not None
    assert found.teacher_ids.tolist() == [0, 2, 5]
    assert shares_tokenizer(student, "teacher's")
    assert vocabulary_map_for(student, student.tokenizer_sha256) is None  # it numbers its tokens as itself
    assert vocabulary_map_for(student, None) is None
    assert not shares_tokenizer(student, "another")
    other = ModelFiles("other", make_tiny_model(tmp_path / "other", merges=2))
    copy_vocabulary_map(student.folder, other.folder)
    assert (other.folder / FILE).read_bytes() == (student.folder / FILE).read_bytes()
    assert vocabulary_map_for(other, "teacher's") is None  # the file is not about this tokenizer

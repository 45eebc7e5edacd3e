"""Packing: the same batch in fewer sequences, with the loss and the gradients of the batch that is not packed."""

from __future__ import annotations

from itertools import pairwise
from pathlib import Path
from typing import Any, Literal

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from transformers import AutoConfig, AutoModelForCausalLM

from stillhouse.dataset.store import Dataset
from stillhouse.errors import TrainingError
from stillhouse.models.head import split
from stillhouse.models.layout import IGNORED
from stillhouse.models.load import load_language_model
from stillhouse.recipe.recipe import Recipe
from stillhouse.recipe.student import StudentSettings
from stillhouse.records import EncodingName
from stillhouse.student.data.batches import collator, pack_first_fit, soft_labels_of
from stillhouse.student.data.completion_example import example_of
from stillhouse.student.data.rows import Example
from stillhouse.student.training.forward import replace_forward_with_loss
from stillhouse.student.training.objective import load_objective
from stillhouse.student.training.packing import check_packing
from stillhouse.student.training.train import distill
from stillhouse.teachers.live import LiveTransformersTeacher
from tests.labelled_rows import completion
from tests.precision import close_to_dense, in_float64, largest, summed_gradients
from tests.student.data.test_examples import model_of
from tests.student.training.test_forward import FAMILIES, family, student

PAD = 7


def example(number: int, encoding: EncodingName | None) -> Example:
    return example_of(completion(number, encoding or "top-k"), model_of(1000), soft=encoding is not None, by_text=False)


@given(lengths=st.lists(st.integers(1, 30), max_size=40), width=st.integers(1, 30))
def test_every_row_has_a_place_and_no_sequence_is_too_long(lengths: list[int], width: int) -> None:
    sequences = pack_first_fit(lengths, width)
    assert sorted(row for sequence in sequences for row in sequence) == list(range(len(lengths)))
    totals = [sum(lengths[row] for row in sequence) for sequence in sequences]
    for sequence, total in zip(sequences, totals, strict=True):
        assert total <= width or len(sequence) == 1
    assert all(one + other > width for place, one in enumerate(totals) for other in totals[:place])  # none to spare


@given(
    numbers=st.lists(st.integers(0, 500), min_size=1, max_size=8),
    encoding=st.sampled_from(["top-k", "sampled", None]),
    room=st.integers(0, 60),
)
def test_a_packed_batch_holds_each_example_whole(
    numbers: list[int], encoding: Literal["top-k", "sampled"] | None, room: int
) -> None:
    """Read back token by token: a position of 0 begins an example, and labels come in the order of the sequences."""
    examples = [example(number, encoding) for number in numbers]
    width = max(len(one) for one in examples) + room
    batch = collator(PAD, pack_to=width)(examples)
    assert batch["input_ids"].shape[1] <= width
    assert "attention_mask" not in batch
    found, order = [], []
    for ids, positions, labels in zip(batch["input_ids"], batch["position_ids"], batch["labels"], strict=True):
        begins = [*(positions == 0).nonzero().flatten().tolist(), len(ids)]
        for begin, end in pairwise(begins):
            learnt = labels[begin:end] != IGNORED
            if not learnt.any():
                assert (ids[begin:end] == PAD).all() and end - begin == 1  # padding, each token on its own
                continue
            assert positions[begin:end].tolist() == list(range(end - begin))
            assert torch.equal(ids[begin:end][learnt], labels[begin:end][learnt])
            found.append((ids[begin:end][~learnt].tolist(), ids[begin:end][learnt].tolist()))
            order.append(found[-1])
    assert sorted(found) == sorted((one.prompt.tolist(), one.completion.tolist()) for one in examples)
    if encoding is not None:
        by_tokens = {(str(one.prompt.tolist()), str(one.completion.tolist())): one for one in examples}
        again = [by_tokens[str(prompt), str(answer)] for prompt, answer in order]
        expected, labels = soft_labels_of(collator(PAD)(again)), soft_labels_of(batch)
        assert labels is not None and expected is not None
        assert torch.equal(labels.token_ids, expected.token_ids)
        assert torch.equal(labels.logprobs, expected.logprobs)


def rows_of(vocabulary: int, encoding: EncodingName | None, count: int = 6) -> list[Example]:
    """Examples of a small vocabulary with labels of any encoding."""
    examples = []
    for number in range(count):
        one = example(number, encoding)
        soft = one.soft
        if soft is not None:
            ids = np.concatenate(  # distinct within a position, as in a dataset
                [
                    np.random.default_rng(at).permutation(vocabulary)[: end - begin].astype(np.int32)
                    for at, (begin, end) in enumerate(pairwise(soft.offsets))
                ]
            )
            soft = type(soft)(ids, soft.logprobs, soft.offsets, soft.tail_logprob)
        examples.append(Example(one.prompt % vocabulary, one.completion % vocabulary, soft))
    return examples


def loss_and_gradients(
    model: torch.nn.Module, batch: dict[str, torch.Tensor]
) -> tuple[torch.Tensor, list[torch.Tensor]]:
    loss = model(**batch)
    return loss.detach(), list(torch.autograd.grad(loss, [*model.parameters()]))


@pytest.mark.parametrize("labels", ["top-k", "sampled", "text", "live"])
@pytest.mark.parametrize("chunk", [3, 512])
@pytest.mark.numeric
@in_float64()
def test_a_packed_batch_has_the_loss_and_gradients_of_one_that_is_not(
    tiny_model: Path, labels: str, chunk: int
) -> None:
    lm = load_language_model(tiny_model, device="cpu")
    encoding: Any = labels if labels in ("top-k", "sampled") else None
    settings = student(kind="forward-kl", temperature=2.0, cross_entropy_weight=0.3)
    if labels == "text":
        settings = settings.model_copy(update={"mode": "black-box"})
    teacher = None
    if labels == "live":
        other = load_language_model(tiny_model, device="cpu").model
        with torch.no_grad():
            for parameter in other.parameters():
                parameter.mul_(1.3)
        teacher = LiveTransformersTeacher(split(other), other.config.vocab_size)
    replace_forward_with_loss(lm.model, load_objective(settings, encoding), chunk=chunk, teacher=teacher)
    lm.model.train()
    examples = rows_of(200, encoding)
    width = 2 * max(len(one) for one in examples)
    packed = collator(PAD, pack_to=width)(examples)
    assert packed["input_ids"].shape[0] < len(examples)
    expected, wanted = loss_and_gradients(lm.model, collator(PAD)(examples))
    found, gradients = loss_and_gradients(lm.model, packed)
    close_to_dense(found, expected, summed=largest(expected))
    alone = (lm.model(**collator(PAD)([one])) for one in examples)
    summed = summed_gradients(alone, [*lm.model.parameters()])
    for one, other_one in zip(gradients, wanted, strict=True):
        close_to_dense(one, other_one, summed=summed)


def check(model: Any) -> None:
    check_packing(split(model).hidden, model.config.vocab_size, torch.device("cpu"), "student")


@pytest.mark.parametrize("name", sorted(FAMILIES.keys() - {"opt"}))
def test_models_that_keep_rows_apart(name: str) -> None:
    check(family(name))


APART = {
    "mamba": {"state_size": 4, "num_hidden_layers": 2},
    "bloom": {"n_head": 2, "n_layer": 2},
    "mpt": {"d_model": 16, "n_heads": 2, "n_layers": 2},
    "falcon": {"num_attention_heads": 2, "num_hidden_layers": 2, "alibi": True},
    "rwkv": {"num_hidden_layers": 2},
    "opt": {"ffn_dim": 32, "num_attention_heads": 2, "num_hidden_layers": 2},
}


@pytest.mark.parametrize("fresh", [True, False])
@pytest.mark.parametrize("name", APART)
def test_models_that_do_not_are_refused(name: str, fresh: bool) -> None:
    """Fresh weights are small, and so is what one row then tells another."""
    torch.manual_seed(2)
    config = AutoConfig.for_model(name, vocab_size=40, hidden_size=16, pad_token_id=None, **APART[name])
    model: Any = AutoModelForCausalLM.from_config(config).eval()
    for parameter in model.parameters() if not fresh else []:
        if parameter.dim() > 1:
            torch.nn.init.normal_(parameter, std=0.3)
    with pytest.raises(TrainingError, match="the student does not separate rows that share a sequence") as caught:
        check(model)
    assert (caught.value.setting, caught.value.value) == ("student.packing", True)
    assert caught.value.fix == "set it to false"


@pytest.mark.numeric
@in_float64()
def test_a_student_learns_from_packed_rows(labelled: tuple[Recipe, StudentSettings, Dataset], tmp_path: Path) -> None:
    """Two epochs, packed and not: the same steps, and the same losses but for rounding."""
    recipe, student, dataset = labelled
    sgd = {**student.train, "optim": "sgd", "learning_rate": 0.05}
    cards = [
        distill(
            recipe.model_copy(update={"students": str(tmp_path / str(packing))}),
            student.model_copy(update={"packing": packing, "max_length": 120, "train": sgd}),
            dataset,
        )
        for packing in (False, True)
    ]
    alone, packed = ([step.model_dump(exclude_none=True) for step in card.log] for card in cards)
    assert len(alone) == len(packed) > 4
    for one, other in zip(alone, packed, strict=True):
        assert one == pytest.approx(other, rel=1e-6)

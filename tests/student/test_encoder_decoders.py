"""Encoder-decoders as students: batches and losses, held against one row at a time without padding."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor, nn
from transformers import AutoConfig, AutoModelForSeq2SeqLM

from stillhouse.dataset.encodings import PackedLabels
from stillhouse.models.head import split
from stillhouse.models.layout import completion_logits, make_token_batch
from stillhouse.models.load import LanguageModel, load_language_model, load_weights
from stillhouse.recipe.student import StudentSettings
from stillhouse.records import EncodingName
from stillhouse.student.data.batches import collator, soft_labels_of, tokens_of
from stillhouse.student.data.completion_example import example_of
from stillhouse.student.data.rows import Example
from stillhouse.student.losses.base import SparseLabels
from stillhouse.student.training.forward import replace_forward_with_loss
from stillhouse.student.training.frozen import freeze
from stillhouse.student.training.objective import load_objective
from stillhouse.student.training.sharded import share_embedding_module
from stillhouse.teachers.live import LiveTransformersTeacher
from tests.encoder_decoders import tiny_bart, tiny_t5, tiny_t5_v11
from tests.labelled_rows import completion
from tests.precision import close_to_dense, largest, summed_gradients
from tests.student.data.test_examples import model_of

pytestmark = [pytest.mark.numeric, pytest.mark.usefixtures("one_thread")]

PAD, START = 7, 3
MAKERS: dict[str, Callable[[Path], Path]] = {
    "t5": tiny_t5,
    "t5-v1.1": tiny_t5_v11,
    "bart": tiny_bart,
}
ROWS = [([5, 6, 7, 8, 1], [9, 10, 1]), ([11, 1], [12, 13, 14, 15, 16, 1]), ([17, 18, 1], [1])]


@pytest.fixture(scope="module", params=MAKERS)
def folder(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return MAKERS[request.param](tmp_path_factory.mktemp("models") / request.param)


@pytest.fixture
def lm(folder: Path, float64: None) -> LanguageModel:
    return load_language_model(folder, device="cpu")


def row_by_row(lm: LanguageModel, rows: list[tuple[list[int], list[int]]] = ROWS) -> Tensor:
    """The logits that foretell each completion token, by transformers alone: (completion tokens, vocabulary)."""
    found = []
    for prompt, answer in rows:
        before = torch.tensor([[lm.start_id, *answer[:-1]]])
        found.append(lm.model(input_ids=torch.tensor([prompt]), decoder_input_ids=before).logits[0])
    return torch.cat(found)


def examples_of(soft: list[PackedLabels] | None = None) -> list[Example]:
    rows = [(np.array(prompt, np.int32), np.array(answer, np.int32)) for prompt, answer in ROWS]
    return [Example(*row, soft[place] if soft else None) for place, row in enumerate(rows)]


# --------------------------------------------------------------------------------------------------------------- batches


@given(numbers=st.lists(st.integers(0, 500), min_size=1, max_size=6), encoding=st.sampled_from(["top-k", "sampled"]))
def test_a_batch_holds_every_token_in_its_place(numbers: list[int], encoding: EncodingName) -> None:
    examples = [
        example_of(completion(number, encoding), model_of(1000), soft=True, by_text=False) for number in numbers
    ]
    batch = collator(PAD, START)(examples)
    pairs = [(one.prompt.tolist(), one.completion.tolist()) for one in examples]
    expected = make_token_batch(*map(list, zip(*pairs, strict=True)), PAD, START)
    for key in ("input_ids", "attention_mask", "labels", "decoder_input_ids"):
        assert torch.equal(getattr(tokens_of(batch), key), getattr(expected, key)), key
    for row, (prompt, answer) in enumerate(pairs):  # and make_token_batch itself
        assert batch["input_ids"][row][batch["attention_mask"][row] == 1].tolist() == prompt
        assert batch["decoder_input_ids"][row, : len(answer)].tolist() == [START, *answer[:-1]]
        assert batch["labels"][row].tolist() == answer + [-100] * (batch["labels"].shape[1] - len(answer))
        assert set(batch["input_ids"][row, len(prompt) :].tolist()) <= {PAD}
    labels, causal = soft_labels_of(batch), soft_labels_of(collator(PAD)(examples))
    assert labels is not None and causal is not None
    assert len(labels.token_ids) == len(expected.targets) == int(expected.completion_mask.sum())
    for name in ("token_ids", "logprobs", "tail_logprob"):  # positions stand in the same order for both kinds of model
        assert torch.equal(getattr(labels, name), getattr(causal, name))


def test_logits_are_those_of_each_row_alone(lm: LanguageModel) -> None:
    prompts, answers = map(list, zip(*ROWS, strict=True))
    expected = row_by_row(lm)
    assert expected.shape == (10, lm.model.config.vocab_size)
    for pad in (lm.pad_id, 9):  # whatever fills up
        batch = make_token_batch(prompts, answers, pad, lm.start_id)
        close_to_dense(completion_logits(lm.model, batch), expected, summed=largest(expected))
    assert batch.targets.tolist() == [token for answer in answers for token in answer]


# ------------------------------------------------------------------------------------------------------------- two parts

_T5 = {"d_model": 16, "d_kv": 8, "d_ff": 32, "num_layers": 2, "num_decoder_layers": 3, "num_heads": 2}
_BART = {
    "d_model": 16,
    "encoder_layers": 2,
    "decoder_layers": 3,
    "encoder_attention_heads": 2,
    "decoder_attention_heads": 2,
    "encoder_ffn_dim": 32,
    "decoder_ffn_dim": 32,
}
FAMILIES: dict[str, dict[str, Any]] = {
    "t5": _T5,
    "mt5": _T5,
    "umt5": _T5,
    "longt5": _T5,
    "bart": _BART,
    "mbart": _BART,
    "marian": _BART,
    "m2m_100": _BART,
    "pegasus": _BART,
}


def family(name: str, **changes: Any) -> Any:
    """A model of random weights, in the precision of the moment."""
    torch.manual_seed(1)
    ids = {"pad_token_id": 0, "eos_token_id": 1, "bos_token_id": 2, "decoder_start_token_id": 0}
    config = AutoConfig.for_model(name, vocab_size=40, **ids, **(FAMILIES[name] | changes))
    model = AutoModelForSeq2SeqLM.from_config(config).eval().to(torch.get_default_dtype())
    for parameter in model.parameters():
        nn.init.normal_(parameter, std=0.3)
    return model


@pytest.mark.usefixtures("float64")
@pytest.mark.parametrize("name", FAMILIES)
def test_a_model_in_parts_gives_its_own_logits(name: str) -> None:
    model = family(name)
    parts = split(model)
    assert isinstance(parts.head.layer, nn.Linear)
    batch = make_token_batch(*map(list, zip(*ROWS, strict=True)), 0, 0)
    hidden = parts.hidden(
        batch.input_ids,
        batch.labels,
        attention_mask=batch.attention_mask,
        decoder_input_ids=batch.decoder_input_ids,
    )
    assert hidden.shape == (10, 16)
    expected = completion_logits(model, batch)
    close_to_dense(parts.head(hidden), expected, summed=largest(expected))


def test_a_model_with_a_bias_after_the_head_gives_its_logits_whole() -> None:
    """Marian's models were trained with one."""
    model = family("marian")
    model.final_logits_bias.normal_()
    parts = split(model)
    assert isinstance(parts.head.layer, nn.Identity)
    batch = make_token_batch(*map(list, zip(*ROWS, strict=True)), 0, 0)
    whole = parts.head(
        parts.hidden(
            batch.input_ids,
            batch.labels,
            attention_mask=batch.attention_mask,
            decoder_input_ids=batch.decoder_input_ids,
        )
    )
    torch.testing.assert_close(whole, completion_logits(model, batch))


def test_one_embedding_for_all_who_share_its_weights_changes_nothing(folder: Path, lm: LanguageModel) -> None:
    """What FSDP2 wants; the weights keep their names, and the logits are the same."""
    before, keys = row_by_row(lm), [*lm.model.state_dict()]
    share_embedding_module(lm.model)
    embedding = lm.model.get_input_embeddings()
    assert lm.model.get_encoder().embed_tokens is embedding
    assert lm.model.get_decoder().embed_tokens is embedding
    assert [*lm.model.state_dict()] == keys
    assert torch.equal(row_by_row(lm), before)


@pytest.mark.parametrize("make", [tiny_t5, tiny_t5_v11])
def test_how_t5_scales_its_logits_survives_the_disk(tmp_path: Path, make: Callable[[Path], Path]) -> None:
    folder = make(tmp_path / "t5")
    first = load_weights(folder, dtype=torch.float32)
    first.save_pretrained(tmp_path / "again")
    second = load_weights(tmp_path / "again", dtype=torch.float32)
    for model in (first, second):
        assert split(model).head.factor == (16**-0.5 if make is tiny_t5 else 1.0)
        tied = model.get_input_embeddings().weight is model.get_output_embeddings().weight
        assert tied == (make is tiny_t5)
    one, two = (row_by_row(LanguageModel(model, None, 0)) for model in (first, second))  # type: ignore[arg-type]
    assert torch.equal(one, two)


# ---------------------------------------------------------------------------------------------------------------- losses


def settings(**changes: Any) -> StudentSettings:
    return StudentSettings.model_validate({"init": {"model": "x"}, **changes})


def labels_from(logits: Tensor, encoding: str) -> tuple[list[PackedLabels], SparseLabels]:
    """Labels of a made-up teacher, as rows hold them and as the objective takes them."""
    from stillhouse.models.soft_labels import sampled, top_k
    from stillhouse.student.data.completion_example import packed

    rows, begin = [], 0
    for _, answer in ROWS:
        part = logits[begin : begin + len(answer)]
        rows.append(packed(top_k(part, 6).soft_labels() if encoding == "top-k" else sampled(part, 20, seed=begin)))
        begin += len(answer)
    whole = soft_labels_of(collator(0)(examples_of(rows)))
    assert whole is not None
    return rows, whole


@pytest.mark.parametrize("chunk", [1, 4, 100])
@pytest.mark.parametrize("encoding", ["top-k", "sampled"])
@pytest.mark.parametrize("temperature", [1.0, 2.0])
def test_the_loss_of_stored_labels_and_its_gradients(
    lm: LanguageModel, encoding: EncodingName, temperature: float, chunk: int
) -> None:
    """A padded batch whose head runs in chunks, against the objective on the logits of each row alone."""
    loss = {"kind": "forward-kl", "temperature": temperature, "cross_entropy_weight": 0.3}
    objective = load_objective(settings(loss=loss), encoding)
    whole = row_by_row(lm)
    teacher = torch.randn(whole.shape, generator=torch.Generator().manual_seed(2)) * 3
    rows, labels = labels_from(teacher, encoding)
    targets = torch.tensor([token for _, answer in ROWS for token in answer])
    parameters = [parameter for parameter in lm.model.parameters() if parameter.requires_grad]
    each = [slice(place, place + 1) for place in range(len(targets))]
    summed = summed_gradients((objective(whole[one], targets[one], labels[one]) for one in each), parameters)
    expected = objective(whole, targets, labels)
    wanted = torch.autograd.grad(expected, parameters, allow_unused=True)
    measured = objective.held_out_metrics(whole, targets, labels)
    replace_forward_with_loss(lm.model, objective, chunk=chunk)
    batch = collator(lm.pad_id, lm.start_id)(examples_of(rows))
    close_to_dense(lm.model(**batch), measured, summed=largest(measured))
    without_dropout(lm.model).train()
    found = lm.model(**batch)
    close_to_dense(found, expected, summed=largest(expected))
    gradients = torch.autograd.grad(found, parameters, allow_unused=True)
    assert sum(gradient is not None for gradient in gradients) > 20
    for one, other in zip(gradients, wanted, strict=True):
        assert (one is None) == (other is None)
        if one is not None and other is not None:
            close_to_dense(one, other, summed=summed)


@pytest.mark.parametrize("temperature", [1.0, 2.0])
def test_a_live_teacher_gives_the_dense_formula(folder: Path, lm: LanguageModel, temperature: float) -> None:
    """T^2 KL(teacher || student) + CE, written out, over each row alone."""
    other = load_language_model(folder, device="cpu")
    with torch.no_grad():
        for number, parameter in enumerate(other.model.parameters()):
            parameter.add_(torch.randn(parameter.shape, generator=torch.Generator().manual_seed(number)) * 0.1)
        p = (row_by_row(other) / temperature).log_softmax(-1)
    z = row_by_row(lm)
    q = (z / temperature).log_softmax(-1)
    targets = torch.tensor([token for _, answer in ROWS for token in answer])
    losses = temperature**2 * (p.exp() * (p - q)).sum(-1) + 0.5 * nn.functional.cross_entropy(
        z, targets, reduction="none"
    )
    expected = losses.sum()
    parameters = [parameter for parameter in lm.model.parameters() if parameter.requires_grad]
    summed = summed_gradients(losses, parameters)
    wanted = torch.autograd.grad(expected, parameters, allow_unused=True)
    loss = {"kind": "forward-kl", "temperature": temperature, "cross_entropy_weight": 0.5}
    teacher = LiveTransformersTeacher(split(other.model), int(other.model.config.vocab_size))
    replace_forward_with_loss(without_dropout(lm.model), load_objective(settings(loss=loss)), chunk=3, teacher=teacher)
    lm.model.train()
    found = lm.model(**collator(lm.pad_id, lm.start_id)(examples_of()))
    close_to_dense(found, expected, summed=largest(expected))
    for one, two in zip(torch.autograd.grad(found, parameters, allow_unused=True), wanted, strict=True):
        if one is not None and two is not None:
            close_to_dense(one, two, summed=summed)


def without_dropout(model: Any) -> Any:
    for module in model.modules():
        if isinstance(module, nn.Dropout):
            module.p = 0.0
        if isinstance(getattr(module, "dropout", None), float):
            module.dropout = 0.0
    return model


def test_a_process_without_a_share_takes_part_for_nothing(lm: LanguageModel) -> None:
    replace_forward_with_loss(lm.model, load_objective(settings(mode="black-box")), chunk=4)
    lm.model.train()
    nothing = lm.model(**collator(lm.pad_id, lm.start_id)([]))
    nothing.backward()
    assert float(nothing.detach()) == 0
    for parameter in lm.model.parameters():
        assert parameter.grad is None or not parameter.grad.any()


def test_what_is_frozen_does_not_learn(folder: Path, lm: LanguageModel) -> None:
    """T5 and BART share one table among encoder, decoder and head."""
    freeze(lm.model, ("embedding", "head"))
    replace_forward_with_loss(lm.model, load_objective(settings(mode="black-box")), chunk=4)
    lm.model.train()
    lm.model(**collator(lm.pad_id, lm.start_id)(examples_of())).backward()
    still = {name for name, parameter in lm.model.named_parameters() if parameter.grad is None}
    assert not lm.model.get_input_embeddings().weight.requires_grad
    assert not lm.model.get_output_embeddings().weight.requires_grad
    frozen = {name for name, parameter in lm.model.named_parameters() if not parameter.requires_grad}
    assert frozen == still
    tables = {"t5": {"shared.weight"}, "t5-v1.1": {"shared.weight", "lm_head.weight"}, "bart": {"model.shared.weight"}}
    assert frozen == tables[folder.name]

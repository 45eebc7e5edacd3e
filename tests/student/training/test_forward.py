"""The loss in chunks, from stored labels and a live teacher, against whole logits and dense formulas."""

import math
from pathlib import Path

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import nn
from transformers import AutoConfig, AutoModelForCausalLM

from stillhouse.models.head import Head, split
from stillhouse.models.layout import IGNORED, completion_logits
from stillhouse.models.load import load_language_model
from stillhouse.models.soft_labels import chosen_logprobs, top_k
from stillhouse.recipe.student import StudentSettings
from stillhouse.student.data.batches import collator, tokens_of
from stillhouse.student.losses.base import DenseLabels, SparseLabels, paired_outcomes
from stillhouse.student.training.forward import chunked_loss, replace_forward_with_loss
from stillhouse.student.training.objective import Labels, load_objective
from tests.precision import close_to_dense, largest, summed_gradients
from tests.student.losses.test_losses import FORMULAS, labels_of, logits, tempered
from tests.student.losses.test_losses_objective import KINDS

pytestmark = pytest.mark.numeric

SMALL = {"vocab_size": 40, "hidden_size": 16, "num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 32}
FAMILIES = {  # models whose logits go through something else after the head, or whose parts have other names
    "llama": {"num_key_value_heads": 1},
    "gemma2": {"num_key_value_heads": 1, "head_dim": 8, "final_logit_softcapping": 3.0},
    "granite": {"num_key_value_heads": 1, "logits_scaling": 4.0},
    "cohere": {"num_key_value_heads": 1, "logit_scale": 0.25},
    "gpt2": {"n_embd": 16, "n_layer": 2, "n_head": 2},
    "gpt_neox": {},
    "opt": {"ffn_dim": 32, "word_embed_proj_dim": 8},
    "qwen3": {"num_key_value_heads": 1, "head_dim": 8},
    "olmo2": {"num_key_value_heads": 1},
}


def student(**loss: object) -> StudentSettings:
    return StudentSettings.model_validate({"init": {"model": "x"}, "loss": loss})


def family(name: str) -> nn.Module:
    torch.manual_seed(1)
    config = AutoConfig.for_model(name, **(SMALL | FAMILIES[name]), bos_token_id=0, eos_token_id=0, pad_token_id=None)
    model: nn.Module = AutoModelForCausalLM.from_config(config).eval().to(torch.get_default_dtype())
    for parameter in model.parameters():
        nn.init.normal_(parameter, std=0.3)
    return model


def a_batch(rows: int = 3, time: int = 9, vocabulary: int = 40) -> dict[str, torch.Tensor]:
    """Rows of unlike lengths, right-padded."""
    random = torch.Generator().manual_seed(5)
    input_ids = torch.randint(1, vocabulary, (rows, time), generator=random)
    labels, attention_mask = input_ids.clone(), torch.ones_like(input_ids)
    for row in range(rows):
        labels[row, : 2 + row] = IGNORED
        labels[row, time - row :] = IGNORED
        attention_mask[row, time - row :] = 0
    return {"input_ids": input_ids, "attention_mask": attention_mask, "labels": labels}


@pytest.mark.parametrize("name", FAMILIES)
def test_a_model_in_parts_gives_its_own_logits(name: str, float64: None) -> None:
    model = family(name)
    batch = a_batch()
    parts = split(model)  # type: ignore[arg-type]
    assert not isinstance(parts.head.layer, nn.Identity)
    whole = completion_logits(model, tokens_of(batch))
    close_to_dense(parts.head(parts.hidden(**batch)), whole, summed=largest(whole))


def test_a_model_of_unknown_parts_gives_its_logits_whole(float64: None) -> None:
    model = family("gemma2")
    model.config.final_logit_softcapping = None  # type: ignore[union-attr]
    original = model.forward

    def otherwise(**arguments: object) -> object:
        output = original(**arguments)
        output.logits = output.logits * 2
        return output

    model.forward = otherwise  # type: ignore[method-assign,assignment]
    parts = split(model)  # type: ignore[arg-type]
    assert isinstance(parts.head.layer, nn.Identity)
    batch = a_batch()
    expected = completion_logits(model, tokens_of(batch))
    close_to_dense(parts.head(parts.hidden(**batch)), expected, summed=largest(expected))


@pytest.mark.parametrize("chunk", [1, 3, 7, 100])
@pytest.mark.parametrize("kind", KINDS)
def test_value_and_gradients_do_not_depend_on_the_chunk(kind: str, chunk: int) -> None:
    objective = load_objective(student(kind=kind, temperature=2.0, cross_entropy_weight=0.5), "top-k")
    torch.manual_seed(3)
    hidden = torch.randn(10, 6, dtype=torch.float64, requires_grad=True)
    layer = nn.Linear(6, 12, dtype=torch.float64)
    targets = torch.arange(10)
    labels = labels_of(torch.randn(10, 12, dtype=torch.float64) * 2, 5)
    whole = objective(layer(hidden), targets, labels)
    expected = torch.autograd.grad(whole, [hidden, *layer.parameters()])
    found = chunked_loss(objective, Head(layer), hidden, targets, lambda part: labels[part], chunk)
    each = [slice(place, place + 1) for place in range(len(targets))]
    losses = [objective(layer(hidden[one]), targets[one], labels[one]) for one in each]
    close_to_dense(found, whole, summed=float(whole.detach()))
    summed = summed_gradients(losses, [hidden, *layer.parameters()])
    for one, other in zip(torch.autograd.grad(found, [hidden, *layer.parameters()]), expected, strict=True):
        close_to_dense(one, other, summed=summed)


@given(positions=st.integers(0, 9), chunk=st.integers(1, 10))
def test_never_more_than_a_chunk_is_held_and_every_position_counts_once(positions: int, chunk: int) -> None:
    seen: list[int] = []

    def loss(logits: torch.Tensor, targets: torch.Tensor, labels: Labels | None) -> torch.Tensor:
        seen.extend(targets.tolist())
        assert len(logits) == len(targets) <= chunk
        return logits.sum()

    hidden, targets = torch.ones(positions, 2), torch.arange(positions)
    with torch.no_grad():
        total = chunked_loss(loss, Head(nn.Identity()), hidden, targets, lambda _: None, chunk)
    assert float(total) == 2 * positions
    assert seen == list(range(positions))


@pytest.mark.parametrize("temperature", [1.0, 2.0])
@pytest.mark.parametrize("kind", KINDS)
def test_dense_labels_are_the_dense_formula(kind: str, temperature: float) -> None:
    teacher, learning = logits(21), logits(22)
    objective = load_objective(student(kind=kind, temperature=temperature, cross_entropy_weight=0.0), "dense")
    found = objective(learning, torch.zeros(len(teacher), dtype=torch.int64), DenseLabels(teacher))
    p, q = (tempered(z.softmax(-1), temperature) for z in (teacher, learning))
    expected = temperature**2 * float(FORMULAS[kind](p, q, p.shape[-1]).sum())
    assert float(found) == pytest.approx(expected, rel=1e-6)


@pytest.mark.parametrize("kind", ["forward-kl", "reverse-kl", "generalized-jsd", "total-variation"])
@pytest.mark.parametrize("padded", ["teacher", "student"])
def test_rows_that_only_one_vocabulary_has(kind: str, padded: str) -> None:
    objective = load_objective(student(kind=kind, cross_entropy_weight=0.0), "dense")
    targets = torch.zeros(3, dtype=torch.int64)
    plain = [logits(31)[:3], logits(32)[:3]]
    found = {}
    for extra in (-1e9, 2.0):
        wide = torch.cat([plain[padded == "student"], torch.full((3, 4), extra, dtype=plain[0].dtype)], dim=-1)
        both = [wide, plain[1]] if padded == "teacher" else [plain[0], wide]
        found[extra] = float(objective(both[1], targets, DenseLabels(both[0])))
    equal = float(objective(plain[1], targets, DenseLabels(plain[0])))
    assert found[-1e9] == pytest.approx(equal, rel=1e-6)  # padding that takes no mass changes nothing
    if padded == "teacher":  # no student could give its padding any mass: what both know is compared
        assert found[2.0] == pytest.approx(equal, rel=1e-6)
    else:  # mass that the student gives to padding is a difference between the two
        assert equal * 1.001 < found[2.0] < math.inf


def test_the_forward_pass_ends_in_the_objective_s_sum(tiny_model: Path, float64: None) -> None:
    lm = load_language_model(tiny_model, device="cpu")
    batch = a_batch(vocabulary=100)
    tokens = tokens_of(batch)
    whole = completion_logits(lm.model, tokens)
    teacher = torch.randn(whole.shape, generator=torch.Generator().manual_seed(2)) * 3
    labels = labels_of(teacher, 8)
    soft = {
        "soft_token_ids": labels.token_ids.int(),
        "soft_logprobs": labels.logprobs,
        "soft_tail_logprob": labels.tail_logprob,
    }
    objective = load_objective(student(kind="forward-kl", temperature=2.0, cross_entropy_weight=0.3), "top-k")
    replace_forward_with_loss(lm.model, objective, chunk=4)
    lm.model.train()
    expected = objective(whole, tokens.targets, labels)
    close_to_dense(lm.model(**batch, **soft), expected, summed=largest(expected))
    lm.model.eval()
    measured = lm.model(**batch, **soft)
    close_to_dense(measured, objective.held_out_metrics(whole, tokens.targets, labels), summed=largest(measured))
    nobody = {**batch, "labels": torch.full_like(batch["labels"], IGNORED)}
    lm.model.train()
    none = lm.model(**nobody)
    none.backward()
    assert float(none.detach()) == 0
    assert all(p.grad is None or p.grad.isfinite().all() for p in lm.model.parameters())


def test_a_batch_without_a_row_is_measured_as_nothing(tiny_model: Path) -> None:
    lm = load_language_model(tiny_model, device="cpu")
    replace_forward_with_loss(lm.model, load_objective(student(temperature=2.0)), chunk=4)
    assert lm.model.eval()(**collator(lm.pad_id)([])).tolist() == [0.0, 0.0, 0.0]


def test_a_live_teacher_gives_the_gradient_of_the_dense_formula(tiny_model: Path, float64: None) -> None:
    from stillhouse.teachers.live import LiveTransformersTeacher

    lm = load_language_model(tiny_model, device="cpu")
    other = load_language_model(tiny_model, device="cpu").model
    with torch.no_grad():
        for parameter in other.parameters():
            parameter.add_(torch.randn(parameter.shape, generator=torch.Generator().manual_seed(7)) * 0.1)
    batch = a_batch(vocabulary=100)
    tokens = tokens_of(batch)
    objective = load_objective(student(kind="reverse-kl", cross_entropy_weight=0.0))
    with torch.no_grad():
        dense = completion_logits(other, tokens)
    logits = completion_logits(lm.model, tokens)
    expected = objective(logits, tokens.targets, DenseLabels(dense))
    parameters = list(lm.model.parameters())
    each = [slice(place, place + 1) for place in range(len(dense))]
    losses = (objective(logits[one], tokens.targets[one], DenseLabels(dense[one])) for one in each)
    summed = summed_gradients(losses, parameters)
    wanted = torch.autograd.grad(expected, parameters)
    replace_forward_with_loss(
        lm.model, objective, chunk=5, teacher=LiveTransformersTeacher(split(other), other.config.vocab_size)
    )
    lm.model.train()
    found = lm.model(**batch)
    close_to_dense(found, expected, summed=largest(expected))
    for one, two in zip(torch.autograd.grad(found, parameters), wanted, strict=True):
        close_to_dense(one, two, summed=summed)


@pytest.mark.parametrize(
    ("of_model", "of_loss"),
    [(torch.bfloat16, torch.float32), (torch.float32, torch.float32), (torch.float64, torch.float64)],
    ids=str,
)
def test_the_loss_is_computed_in_float32_or_in_the_model_s_own_float64(
    of_model: torch.dtype, of_loss: torch.dtype
) -> None:
    """Sums in half precision would be no sums; and what is float64 is not rounded to float32 on the way."""
    model = family("llama").to(of_model)
    batch = a_batch()
    logits = completion_logits(model, tokens_of(batch))
    labels = labels_of(torch.randn(logits.shape, generator=torch.Generator().manual_seed(2)) * 3, 8)
    objective = load_objective(student(kind="forward-kl", temperature=2.0))
    parts = split(model)  # type: ignore[arg-type]
    both = paired_outcomes(labels, logits, 2.0)
    found = [
        logits,
        parts.head(parts.hidden(**batch)),
        both.teacher,
        both.student,
        objective(logits, tokens_of(batch).targets, labels),
        objective.held_out_metrics(logits, tokens_of(batch).targets, labels),
        top_k(logits, 3).logprobs,
        top_k(logits, 3).tail_logprob,
        chosen_logprobs(logits, tokens_of(batch).targets),
    ]
    assert {one.dtype for one in found} == {of_loss}


def test_sparse_labels_can_be_cut() -> None:
    labels = labels_of(logits(1), 4)
    part = labels[slice(1, 3)]
    assert isinstance(part, SparseLabels)
    assert torch.equal(part.token_ids, labels.token_ids[1:3])
    assert torch.equal(part.tail_logprob, labels.tail_logprob[1:3])

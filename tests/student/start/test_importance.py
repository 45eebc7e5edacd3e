"""What a layer is worth, against the student that really lacks it."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import pairwise

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor
from transformers import (
    BartConfig,
    BartForConditionalGeneration,
    Gemma3ForCausalLM,
    Gemma3TextConfig,
    GPT2Config,
    GPT2LMHeadModel,
    LlamaConfig,
    LlamaForCausalLM,
    PreTrainedModel,
    T5Config,
    T5ForConditionalGeneration,
)

from stillhouse.models.layout import TokenBatch, completion_logits, make_token_batch
from stillhouse.student.start.importance import (
    CANDIDATES,
    MeasuredTeacher,
    Removal,
    block_influence,
    greedy,
    leave_one_out,
)
from stillhouse.student.start.layers import copy_layers
from stillhouse.student.start.stacks import Kept, stacks_of
from tests.precision import in_float64

pytestmark = [pytest.mark.numeric, pytest.mark.usefixtures("one_thread")]
VOCABULARY = 40


def model_of(kind: str) -> PreTrainedModel:
    torch.manual_seed(0)
    small = {"vocab_size": VOCABULARY, "pad_token_id": 0, "eos_token_id": 1, "bos_token_id": None}
    heads = {"num_attention_heads": 4, "num_key_value_heads": 2, "head_dim": 4}
    one = {"hidden_size": 16, "intermediate_size": 24, "num_hidden_layers": 5, "initializer_range": 0.4}
    models = {
        "llama": lambda: LlamaForCausalLM(LlamaConfig(**small, **heads, **one)),
        "gemma3": lambda: Gemma3ForCausalLM(Gemma3TextConfig(**small, **heads, **one, sliding_window=4)),
        "gpt2": lambda: GPT2LMHeadModel(GPT2Config(**small, n_embd=16, n_layer=5, n_head=4, initializer_range=0.4)),
        "t5": lambda: T5ForConditionalGeneration(
            T5Config(
                **small, d_model=16, d_ff=24, d_kv=4, num_heads=4, num_layers=3, num_decoder_layers=4,
                decoder_start_token_id=0, initializer_factor=4.0,
            )
        ),
        "bart": lambda: BartForConditionalGeneration(
            BartConfig(
                **small, d_model=16, encoder_ffn_dim=24, decoder_ffn_dim=24, encoder_layers=3, decoder_layers=4,
                encoder_attention_heads=4, decoder_attention_heads=4, decoder_start_token_id=1, init_std=0.4,
            )
        ),
    }  # fmt: skip
    return models[kind]().eval().to(torch.get_default_dtype())


def batches_of(model: PreTrainedModel, rows: int = 5, *, at_once: int = 2) -> tuple[TokenBatch, ...]:
    """Rows of several lengths, laid out `at_once` at a time."""
    generator = torch.Generator().manual_seed(1)
    start = model.config.decoder_start_token_id if model.config.is_encoder_decoder else None

    def tokens(count: int) -> list[int]:
        return torch.randint(2, VOCABULARY, (count,), generator=generator).tolist()

    both = [(tokens(3 + row), tokens(2 + row % 3)) for row in range(rows)]
    parts = [both[place : place + at_once] for place in range(0, rows, at_once)]
    return tuple(make_token_batch(*zip(*part, strict=True), pad_id=0, start_id=start) for part in parts)


def logprobs(model: PreTrainedModel, batches: Sequence[TokenBatch]) -> Tensor:
    with torch.inference_mode():
        return torch.cat([completion_logits(model, batch) for batch in batches]).double().log_softmax(dim=-1)


def distance(teacher: PreTrainedModel, student: PreTrainedModel, batches: Sequence[TokenBatch]) -> float:
    """The dense KL, a token."""
    p, q = logprobs(teacher, batches), logprobs(student.eval(), batches)
    return float((p.exp() * (p - q)).sum(dim=-1).mean())


def without(model: PreTrainedModel, stack: str, gone: Sequence[int]) -> PreTrainedModel:
    """The student that lacks these layers of a stack."""
    kept = [
        Kept(one, tuple(layer for layer in range(one.depth) if one.name != stack or layer not in gone))
        for one in stacks_of(model.config)
    ]
    return copy_layers(model, kept)


@pytest.mark.parametrize("kind", ["llama", "gemma3", "gpt2", "t5", "bart"])
@in_float64()
def test_leaving_a_layer_out_is_the_student_without_it(kind: str) -> None:
    model = model_of(kind)
    batches = batches_of(model)
    scores = leave_one_out(MeasuredTeacher(model, batches))
    for stack in stacks_of(model.config):
        expected = [distance(model, without(model, stack.name, [layer]), batches) for layer in range(stack.depth)]
        if kind == "gemma3":  # a student's layers would have the attention of their new number
            assert len(scores[stack.name]) == len(expected)
        assert scores[stack.name] == pytest.approx(expected, rel=1e-9)
        assert min(scores[stack.name]) > 1e-3  # each does something, so the figures could differ


@pytest.mark.parametrize("kind", ["llama", "t5"])
@in_float64()
def test_greedy_removal_is_the_best_of_its_candidates_at_every_step(kind: str) -> None:
    model = model_of(kind)
    batches = batches_of(model)
    measured = MeasuredTeacher(model, batches)
    for stack in stacks_of(model.config):
        alone = leave_one_out(measured)[stack.name]
        known: list[Removal] = []
        removal = greedy(measured, stack.name, stack.depth - 1, Removal(costs=alone), on_step=known.append)
        costs, gone = list(alone), []
        for step, layer in enumerate(removal.order):
            tried = sorted((one for one in range(stack.depth) if one not in gone), key=lambda one: costs[one])
            found = {
                one: distance(model, without(model, stack.name, [*gone, one]), batches) for one in tried[:CANDIDATES]
            }
            assert layer == min(found, key=lambda one: found[one])
            assert removal.kl[step] == pytest.approx(found[layer], rel=1e-9)
            for one, cost in found.items():
                costs[one] = cost
            gone.append(layer)
        assert known[-1] == removal
        resumed = greedy(measured, stack.name, stack.depth - 1, known[0])
        assert resumed.order == removal.order  # a run that was stopped after its first step goes on alike
        assert resumed.kl == pytest.approx(removal.kl)


def test_layers_are_themselves_again_afterwards() -> None:
    model = model_of("llama")
    batches = batches_of(model)
    before = logprobs(model, batches)
    measured = MeasuredTeacher(model, batches)
    leave_one_out(measured)
    block_influence(measured)
    assert all("forward" not in vars(layer) for layer in model.model.layers)
    assert torch.equal(before, logprobs(model, batches))


@pytest.mark.parametrize("kind", ["llama", "t5"])
@in_float64()
def test_block_influence_is_one_less_the_cosine_over_tokens(kind: str) -> None:
    model = model_of(kind)
    batches = batches_of(model)
    scores = block_influence(MeasuredTeacher(model, batches))
    encoder_decoder = model.config.is_encoder_decoder
    sums: dict[str, Tensor] = {}
    tokens: dict[str, int] = {}
    for batch in batches:
        for row in range(len(batch.input_ids)):  # one row at a time, without padding
            ids = batch.input_ids[row][batch.attention_mask[row].bool()][None]
            if encoder_decoder:
                assert batch.decoder_input_ids is not None
                target = batch.decoder_input_ids[row][batch.labels[row] != -100][None]
                output = model(input_ids=ids, decoder_input_ids=target, output_hidden_states=True)
                states = {"encoder": output.encoder_hidden_states, "decoder": output.decoder_hidden_states}
            else:
                states = {"model": model(input_ids=ids, output_hidden_states=True).hidden_states}
            for name, of in states.items():
                # the last of the library's states is normalised, so the last layer is left to the bounds below
                own = torch.stack([1 - F.cosine_similarity(x, y, dim=-1).sum() for x, y in pairwise(of[:-1])]) + (
                    of[0].shape[1] - 1
                )
                sums[name] = sums.get(name, torch.zeros(())) + own
                tokens[name] = tokens.get(name, 0) + of[0].shape[1]
    for name, total in sums.items():
        assert scores[name][:-1] == pytest.approx((total / tokens[name]).tolist(), abs=1e-9)
        assert 0 <= scores[name][-1] <= 2


@given(at_once=st.integers(1, 5))
@in_float64()
def test_figures_do_not_depend_on_how_rows_are_laid_out(at_once: int) -> None:
    model = model_of("llama")
    one, other = (MeasuredTeacher(model, batches_of(model, at_once=size)) for size in (5, at_once))
    assert leave_one_out(one)["model"] == pytest.approx(leave_one_out(other)["model"], rel=1e-9)
    assert block_influence(one)["model"] == pytest.approx(block_influence(other)["model"], rel=1e-9)

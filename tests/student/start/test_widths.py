"""Narrower students: whole they are the teacher, and what is cut out of them is what does nothing."""

from __future__ import annotations

import dataclasses
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from transformers import AutoConfig, PreTrainedModel

from stillhouse.errors import TrainingError
from stillhouse.models.load import auto_class
from stillhouse.recipe.student_init import WidthSettings
from stillhouse.student.start.activations import Activations, measure_activations
from stillhouse.student.start.axes import FAMILIES, Axis, axes_of, sizes_of
from stillhouse.student.start.layers import copy_layers
from stillhouse.student.start.stacks import Kept, stacks_of
from stillhouse.student.start.widths import cut_widths
from tests.student.start.families import CONFIGS, HEADS, HIDDEN, NEURONS, OF_A_HEAD, logits, make, some_rows

FEWEST = 4  # neurons: what one adds can be so near to 0 that Gemma 2 normalises its rounding errors
WHOLE = WidthSettings(feed_forward=1.0, heads=1.0, hidden=1.0)


def measured(model: PreTrainedModel) -> Activations:
    return measure_activations(model, some_rows(model))


def distance(model: PreTrainedModel, other: PreTrainedModel) -> float:
    """Of their logits, relative to their size: about 1 where they have nothing in common."""
    wanted = logits(other)
    return float((logits(model) - wanted).norm() / wanted.norm())


def parameters(model: PreTrainedModel, *axes: Axis) -> list[tuple[str, torch.Tensor]]:
    """Those whose axes count exactly this, as they can be written to."""
    return [(name, one.data) for name, one in model.named_parameters() if axes_of(name) == axes]


# ------------------------------------------------------------------------------------------------------- nothing is cut


def test_every_family_is_tested() -> None:
    assert {make_config().model_type for make_config in CONFIGS.values()} == {*FAMILIES}


@pytest.mark.parametrize("family", CONFIGS)
def test_of_whole_width_it_is_the_teacher_bit_for_bit(family: str) -> None:
    teacher = make(family)
    student, widths = cut_widths(teacher, WHOLE, measured(teacher))
    assert widths == {"feed_forward": (NEURONS, NEURONS), "heads": (HEADS, HEADS), "hidden": (HIDDEN, HIDDEN)}
    assert type(student) is type(teacher) and student is not teacher
    assert student.config.to_dict() == teacher.config.to_dict()
    theirs, own = teacher.state_dict(), student.state_dict()
    assert theirs.keys() == own.keys()
    assert all(torch.equal(theirs[name], own[name]) for name in theirs)
    assert torch.equal(logits(student), logits(teacher))


@pytest.mark.parametrize("family", ["llama", "gemma2", "t5"])
def test_the_data_type_and_the_end_of_an_answer_stay(family: str) -> None:
    teacher = make(family)
    for parameter in teacher.parameters():  # alone, as from_pretrained does it: tables of positions stay as they are
        parameter.data = parameter.data.to(torch.bfloat16)
    teacher.generation_config.eos_token_id = [0, 5]
    student, _ = cut_widths(teacher, WidthSettings(feed_forward=0.5, hidden=12), measured(teacher))
    assert {parameter.dtype for parameter in student.parameters()} == {torch.bfloat16}
    assert student.generation_config.to_dict() == teacher.generation_config.to_dict()
    whole, _ = cut_widths(teacher, WHOLE, measured(teacher))
    assert torch.equal(logits(whole), logits(teacher))


# ---------------------------------------------------------------------------------------------------------- what is cut


@pytest.mark.parametrize("family", CONFIGS)
def test_a_cut_model_has_its_configs_shapes_and_is_read_by_plain_transformers(family: str, tmp_path: Path) -> None:
    teacher = make(family)
    before = {name: tensor.clone() for name, tensor in teacher.state_dict().items()}
    student, widths = cut_widths(teacher, WidthSettings(feed_forward=0.5, heads=4, hidden=0.5), measured(teacher))
    assert widths == {"feed_forward": (10, NEURONS), "heads": (4, HEADS), "hidden": (12, HIDDEN)}
    sizes = sizes_of(student.config)
    assert dataclasses.astuple(sizes) == (12, 10, 4, 4 if student.config.is_encoder_decoder else 2, sizes.head_dim)
    assert sizes.head_dim == sizes_of(teacher.config).head_dim
    for name, tensor in student.state_dict().items():
        for axis, length in zip(axes_of(name) or (), tensor.shape, strict=True):
            assert sizes.length(axis) in (None, length), name
    tied = [model.get_input_embeddings().weight is model.get_output_embeddings().weight for model in (teacher, student)]
    assert tied[0] == tied[1]
    student.save_pretrained(tmp_path)
    read = auto_class(AutoConfig.from_pretrained(tmp_path)).from_pretrained(tmp_path).eval()
    assert torch.equal(logits(read), logits(student))
    assert all(torch.equal(before[name], tensor) for name, tensor in teacher.state_dict().items())


def kill_channels(model: PreTrainedModel, dead: np.ndarray) -> None:
    """Nothing is ever written to these hidden channels."""
    model.get_input_embeddings().weight.data[:, dead] = 0
    for axes in ((Axis.HIDDEN, Axis.NEURONS), (Axis.HIDDEN, Axis.HEADS)):
        for _, matrix in parameters(model, *axes):
            matrix[dead] = 0
    for name, bias in parameters(model, Axis.HIDDEN):
        if name.endswith(".bias"):
            bias[dead] = 0


def share_a_choice(name: str) -> str:
    """What is the same for parameters whose attentions must keep the same heads: T5's, of the self-attention of a stack."""
    return name.partition(".")[0] if "SelfAttention" in name else name


@given(family=st.sampled_from([*CONFIGS]), seed=st.integers(0, 1000), data=st.data())
@settings(max_examples=30)
def test_what_does_nothing_is_what_is_cut(family: str, seed: int, data: st.DataObject) -> None:
    """Neurons, groups and channels at random places are made dead: without them the model is the same."""
    teacher, draw = make(family, seed), np.random.default_rng(seed)
    whole = sizes_of(teacher.config)
    neurons = data.draw(st.integers(FEWEST, NEURONS), label="neurons")
    groups = data.draw(st.integers(1, whole.groups), label="groups")
    heads = groups * whole.heads_of_a_group
    hidden = data.draw(st.sampled_from(range(heads, HIDDEN + 1, heads)), label="hidden")
    for _, second in parameters(teacher, Axis.HIDDEN, Axis.NEURONS):
        second[:, draw.permutation(NEURONS)[neurons:]] = 0
    orders: dict[str, np.ndarray] = {}
    for name, projection in parameters(teacher, Axis.HIDDEN, Axis.HEADS):
        order = orders.setdefault(share_a_choice(name), draw.permutation(whole.groups))
        projection.unflatten(1, (whole.groups, -1))[:, order[groups:]] = 0
    kill_channels(teacher, draw.permutation(HIDDEN)[hidden:])
    student, _ = cut_widths(teacher, WidthSettings(feed_forward=neurons, heads=heads, hidden=hidden), measured(teacher))
    assert distance(student, teacher) < 2e-3


@given(
    family=st.sampled_from([*CONFIGS]), seed=st.integers(0, 1000), neurons=st.integers(FEWEST, NEURONS), data=st.data()
)
@settings(max_examples=30)
def test_the_highest_figures_are_kept(family: str, seed: int, neurons: int, data: st.DataObject) -> None:
    """Whatever was measured: the student is the teacher whose other neurons and heads are silenced."""
    teacher, draw = make(family, seed), np.random.default_rng(seed)
    whole = sizes_of(teacher.config)
    groups = data.draw(st.integers(1, whole.groups).filter(lambda n: HIDDEN % (n * whole.heads_of_a_group) == 0))
    scores = dict(measured(teacher).scores)
    silenced: list[tuple[torch.Tensor, np.ndarray]] = []
    for name, second in parameters(teacher, Axis.HIDDEN, Axis.NEURONS):
        figures = scores[name.rsplit(".", 2)[0]] = draw.permutation(NEURONS).astype(np.float32)
        silenced.append((second, figures < NEURONS - neurons))
    orders: dict[str, np.ndarray] = {}
    for name, projection in parameters(teacher, Axis.HIDDEN, Axis.HEADS):
        order = orders.setdefault(share_a_choice(name), draw.permutation(whole.groups))
        figures = np.repeat(order + 0.5, whole.heads_of_a_group) + draw.uniform(0, 0.1, whole.heads)
        scores[name.rsplit(".", 2)[0]] = figures.astype(np.float32)
        gone = order < whole.groups - groups
        silenced.append((projection, np.repeat(gone, projection.shape[1] // whole.groups)))
    width = WidthSettings(feed_forward=neurons, heads=groups * whole.heads_of_a_group)
    student, _ = cut_widths(teacher, width, Activations(scores))
    for matrix, columns in silenced:
        matrix[:, columns] = 0
    assert distance(student, teacher) < 2e-3


def test_heads_that_share_a_table_are_ranked_by_the_sum_of_their_shares() -> None:
    teacher = make("t5")
    scores = dict(measured(teacher).scores)
    attentions = [f"encoder.block.{layer}.layer.0.SelfAttention" for layer in range(3)]
    first, others = [0.5, 0.3, 0.2, 0.0, 0.0, 0.0], [0.0, 0.3, 0.0, 0.4, 0.2, 0.1]
    scores[attentions[0]] = 1000 * np.array(first, np.float32)  # sizes of layers are not compared, their shares are
    scores[attentions[1]] = scores[attentions[2]] = np.array(others, np.float32)  # sums: .5 .9 .2 .8 .4 .2
    student, _ = cut_widths(teacher, WidthSettings(heads=3), Activations(scores))
    kept = [place for head in (0, 1, 3) for place in range(head * OF_A_HEAD, (head + 1) * OF_A_HEAD)]
    theirs, own = teacher.state_dict(), student.state_dict()
    for name in attentions:
        assert torch.equal(own[f"{name}.q.weight"], theirs[f"{name}.q.weight"][kept])
        assert torch.equal(own[f"{name}.o.weight"], theirs[f"{name}.o.weight"][:, kept])
    table = f"{attentions[0]}.relative_attention_bias.weight"
    assert torch.equal(own[table], theirs[table][:, [0, 1, 3]])


def test_a_group_is_worth_the_mean_of_its_heads() -> None:
    teacher = make("llama")
    scores = dict(measured(teacher).scores)
    for layer in range(3):
        scores[f"model.layers.{layer}.self_attn"] = np.array([9, 0, 5, 5, 4, 4], np.float32)  # groups: 4.5, 5, 4
    student, _ = cut_widths(teacher, WidthSettings(heads=2), Activations(scores))
    theirs, own = (model.model.layers[1].self_attn for model in (teacher, student))
    assert torch.equal(own.q_proj.weight, theirs.q_proj.weight[2 * OF_A_HEAD : 4 * OF_A_HEAD])
    assert torch.equal(own.v_proj.weight, theirs.v_proj.weight[OF_A_HEAD : 2 * OF_A_HEAD])


def test_of_equal_figures_the_first_are_kept() -> None:
    teacher = make("llama")
    scores = {name: np.ones_like(array) for name, array in measured(teacher).scores.items()}
    student, _ = cut_widths(teacher, WidthSettings(feed_forward=5), Activations(scores))
    theirs, own = (model.model.layers[2].mlp.up_proj.weight for model in (teacher, student))
    assert torch.equal(own, theirs[:5])


# -------------------------------------------------------------------------------------------------- layers, then widths


@pytest.mark.parametrize("family", ["llama", "gemma3_text", "umt5"])
def test_figures_of_the_whole_teacher_serve_a_model_of_some_of_its_layers(family: str) -> None:
    """Layer by layer the choice is the same whether layers or widths are cut first."""
    teacher = make(family)
    kept = [Kept(stack, (1,) if stack.name == "decoder" else (0, 2)) for stack in stacks_of(teacher.config)]
    activations = measured(teacher)
    width = WidthSettings(feed_forward=7, heads=2)
    layers_first, _ = cut_widths(copy_layers(teacher, kept), width, activations, kept)
    widths_first = copy_layers(cut_widths(teacher, width, activations)[0], kept)
    theirs, own = widths_first.state_dict(), layers_first.state_dict()
    assert theirs.keys() == own.keys()
    assert all(torch.equal(theirs[name], own[name]) for name in theirs)


@pytest.mark.parametrize("family", CONFIGS)
def test_layers_and_widths_combine(family: str) -> None:
    teacher = make(family)
    kept = [Kept(stack, (1,)) for stack in stacks_of(teacher.config)]
    width = WidthSettings(feed_forward=0.5, heads=2, hidden=12)
    student, _ = cut_widths(copy_layers(teacher, kept), width, measured(teacher), kept)
    assert [stack.depth for stack in stacks_of(student.config)] == [1] * len(kept)
    assert torch.isfinite(logits(student)).all()


def test_figures_of_another_model_are_refused() -> None:
    teacher = make("llama")
    lacking = {name: array for name, array in measured(teacher).scores.items() if "layers.2" not in name}
    with pytest.raises(TrainingError, match="layers.2.input_layernorm"):
        cut_widths(teacher, WidthSettings(hidden=12), Activations(lacking))

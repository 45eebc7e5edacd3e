"""The meaning of the axes of a model's parameters: hidden channels, feed-forward neurons, attention heads.

    axes_of("model.layers.3.mlp.down_proj.weight")      # (Axis.HIDDEN, Axis.NEURONS)
    sizes = sizes_of(config)                            # 576 hidden channels, 1536 neurons, 9 heads in 3 groups of 64
    refuse_unknown_parameters(config)                   # every parameter must be known and have the shape of these sizes

The table covers Llama, T5 and related models. A new family needs a line in `FAMILIES`, and a case in
tests/student/start/families.py.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from enum import Enum
from typing import Any

import torch
from torch import Tensor
from transformers import PretrainedConfig

from stillhouse.errors import RecipeError
from stillhouse.models.load import auto_class
from stillhouse.student.start.kinds import LANGUAGE_MODELS
from stillhouse.student.start.stacks import native_key

KEY = "student.init.width"


class Axis(Enum):
    """What one axis of a parameter counts."""

    HIDDEN = "hidden channels"
    NEURONS = "feed-forward neurons"
    HEADS = "channels of the attention heads, head by head"
    GROUPS = "channels of the key-value heads, head by head"
    PER_HEAD = "attention heads"
    HEAD_DIM = "channels of one head"
    UNCUT = "what is never cut"


@dataclass(frozen=True)
class Family:
    """How a kind of model uses its widths besides multiplying matrices."""

    norm_offset: float = 0.0  # a norm multiplies by its weight plus this
    scales_embedding: bool = False  # its embedding is multiplied by the square root of the hidden size


_GEMMA = Family(norm_offset=1.0, scales_embedding=True)
FAMILIES: Mapping[str, Family] = {
    **dict.fromkeys(("llama", "mistral", "qwen2", "qwen3", "smollm3", "t5", "mt5", "umt5"), Family()),
    **dict.fromkeys(("gemma", "gemma2", "gemma3_text"), _GEMMA),
}

_NORM = (Axis.HIDDEN,)
_ROWS = (Axis.UNCUT, Axis.HIDDEN)  # one row per token
_AXES: Mapping[str, tuple[Axis, ...]] = {  # by the module that has the parameter; a matrix is (out, in)
    **dict.fromkeys(("embed_tokens", "shared", "lm_head"), _ROWS),
    **dict.fromkeys(("q_proj", "q"), (Axis.HEADS, Axis.HIDDEN)),
    **dict.fromkeys(("k_proj", "v_proj", "k", "v"), (Axis.GROUPS, Axis.HIDDEN)),
    **dict.fromkeys(("o_proj", "o"), (Axis.HIDDEN, Axis.HEADS)),
    **dict.fromkeys(("q_norm", "k_norm"), (Axis.HEAD_DIM,)),
    **dict.fromkeys(("gate_proj", "up_proj", "wi", "wi_0", "wi_1"), (Axis.NEURONS, Axis.HIDDEN)),
    **dict.fromkeys(("down_proj", "wo"), (Axis.HIDDEN, Axis.NEURONS)),
    **dict.fromkeys(("input_layernorm", "post_attention_layernorm", "norm"), _NORM),
    **dict.fromkeys(("pre_feedforward_layernorm", "post_feedforward_layernorm"), _NORM),
    **dict.fromkeys(("layer_norm", "final_layer_norm"), _NORM),
    "relative_attention_bias": (Axis.UNCUT, Axis.PER_HEAD),
}
_BIASED = {Axis.HEADS, Axis.GROUPS, Axis.NEURONS, Axis.HIDDEN}  # out axes of matrices that may have a bias


def axes_of(name: str) -> tuple[Axis, ...] | None:
    """Return the axes of a parameter by its name; None for a parameter that the table does not know."""
    module, _, kind = name.rpartition(".")
    axes = _AXES.get(module.rpartition(".")[2])
    if axes is None or kind == "weight":
        return axes
    return axes[:1] if kind == "bias" and len(axes) == 2 and axes[0] in _BIASED else None


@dataclass(frozen=True)
class Sizes:
    """The widths of a model, as set in its config."""

    hidden: int
    neurons: int
    heads: int
    groups: int  # key-value heads; equal to `heads` if none are shared
    head_dim: int  # channels of one head

    @property
    def heads_of_a_group(self) -> int:
        """Number of attention heads that share a key-value head."""
        return self.heads // self.groups

    def length(self, axis: Axis) -> int | None:
        """Return the length of an axis; None for an axis that is never cut."""
        return {
            Axis.HIDDEN: self.hidden,
            Axis.NEURONS: self.neurons,
            Axis.HEADS: self.heads * self.head_dim,
            Axis.GROUPS: self.groups * self.head_dim,
            Axis.PER_HEAD: self.heads,
            Axis.HEAD_DIM: self.head_dim,
        }.get(axis)


def sizes_of(config: PretrainedConfig) -> Sizes:
    """Return the widths of a model of one of the `FAMILIES`."""
    heads = int(config.num_attention_heads)
    return Sizes(
        hidden=int(config.hidden_size),
        neurons=int(getattr(config, _neurons_key(config))),
        heads=heads,
        groups=int(getattr(config, "num_key_value_heads", None) or heads),
        head_dim=int(getattr(config, "head_dim", None) or config.hidden_size // heads),
    )


def with_sizes(config: PretrainedConfig, sizes: Sizes) -> PretrainedConfig:
    """Return a copy of a config with other widths; the head size is written out unless it follows from the others.

    Raises:
        ValueError: the config's class refuses these widths (StrictDataclassError is another of its names).
    """
    settings: dict[str, Any] = config.to_dict()
    widths = {
        native_key(config, "hidden_size"): sizes.hidden,
        _neurons_key(config): sizes.neurons,
        native_key(config, "num_attention_heads"): sizes.heads,
        native_key(config, "num_key_value_heads"): sizes.groups,
        native_key(config, "head_dim"): sizes.head_dim,
    }
    implied = {"num_key_value_heads": sizes.heads, "head_dim": sizes.hidden // sizes.heads}
    settings |= {key: value for key, value in widths.items() if key in settings or value != implied.get(key)}
    return type(config).from_dict(settings)


def refuse_unknown_parameters(config: PretrainedConfig) -> None:
    """Refuse a model that cannot be cut: another family, or a parameter that the table does not know.

    The model is built from its config without weights.

    Raises:
        RecipeError: the model is of another family, or has a parameter of an unknown name or shape.
    """
    kind = config.model_type
    fix = f"remove {KEY} (layers can still be chosen), or set student.init to {{model: a smaller model}}"
    if kind not in FAMILIES:
        unknown = next(_unknown(config), None) if kind in LANGUAGE_MODELS else None
        whose = "" if unknown is None else f" (its parameter {unknown} cannot be cut)"
        raise RecipeError(
            f"the teacher is a model of type {kind}{whose}, and only the widths of {', '.join(FAMILIES)} can be cut",
            setting=KEY,
            fix=fix,
        )
    unknown = next(_unknown(config, sizes_of(config)), None)
    if unknown is not None:
        raise RecipeError(
            f"this {kind} has the parameter {unknown}, which has another layout than in other models of its type",
            setting=KEY,
            fix=fix,
        )


def _unknown(config: PretrainedConfig, sizes: Sizes | None = None) -> Iterator[str]:
    """Yield the parameters that the table does not know, or whose shape differs from these sizes."""
    with torch.device("meta"):
        model = auto_class(config).from_config(config)
    for name, tensor in model.state_dict().items():
        if (axes := axes_of(name)) is None:
            yield name
        elif sizes is not None and not _has_shape(tensor, axes, sizes):
            yield f"{name} of shape {[*tensor.shape]}"


def _has_shape(tensor: Tensor, axes: tuple[Axis, ...], sizes: Sizes) -> bool:
    wanted = [sizes.length(axis) for axis in axes]
    return tensor.ndim == len(axes) and all(
        long is None or long == has for long, has in zip(wanted, tensor.shape, strict=True)
    )


def _neurons_key(config: PretrainedConfig) -> str:
    return "d_ff" if hasattr(config, "d_ff") else native_key(config, "intermediate_size")

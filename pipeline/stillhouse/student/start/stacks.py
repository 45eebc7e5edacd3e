"""The stacks of layers of a model, from its config: one in a causal model, else an encoder's and a decoder's.

    kept = kept_layers(config, {"encoder": 3, "decoder": [0, 5]})     # the layers of each stack that a student keeps
    settings = config_for_layers(config, kept)                              # the config for these layers
    weights = weights_for_layers(teacher.state_dict(), kept)                  # their weights, under their new numbers

T5 has one table of relative positions for a whole stack, stored in the first layer: it moves to the first layer of the
student, whichever that was in the teacher.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from stillhouse.errors import RecipeError
from stillhouse.recipe.student_init import Layers, StackLayers

if TYPE_CHECKING:
    from torch import Tensor, nn
    from transformers import PretrainedConfig, PreTrainedModel

_KEY = "student.init.layers"
_DEPTH_KEYS = {  # the names in configs for the number of layers of each stack
    "encoder": ("num_layers", "encoder_layers", "num_encoder_layers"),
    "decoder": ("num_decoder_layers", "decoder_layers"),
}
_PARTS = r"layers|h|blocks|block"  # the names in models for a stack: model.layers.7.mlp.up_proj.weight
_CAUSAL_LAYER = re.compile(rf"^(?P<before>.*?\.)??(?P<part>{_PARTS})\.(?P<layer>\d+)\.(?P<rest>.*)$")
_STACK_LAYER = re.compile(
    rf"^(?P<before>(?:.*?\.)??(?P<stack>encoder|decoder)\.)(?P<part>{_PARTS})\.(?P<layer>\d+)\.(?P<rest>.*)$"
)
_SHARED_BIAS = (
    "relative_attention_bias"  # stored in the first layer for the whole stack, unless other layers have one too
)


@dataclass(frozen=True)
class Stack:
    """One stack of layers, as described in a config."""

    name: str  # "encoder" or "decoder"; "model" for a causal model
    depth: int
    count: str  # the config's name for the number of layers
    section: str | None = None  # the stack's own section of the config, if it has one

    @property
    def words(self) -> str:
        """The owner of the layers, for an error message."""
        return "the teacher" if self.name == "model" else f"the teacher's {self.name}"


@dataclass(frozen=True)
class Kept:
    """The layers of a stack that are kept, counted from 0."""

    stack: Stack
    layers: tuple[int, ...]


def stacks_of(config: PretrainedConfig) -> tuple[Stack, ...]:
    """Return the stacks of a model: one, or the encoder and the decoder; none if the config does not describe them."""
    if not config.is_encoder_decoder:
        depth = getattr(config, "num_hidden_layers", None)
        return () if depth is None else (Stack("model", depth, native_key(config, "num_hidden_layers")),)
    stacks = []
    for name, counts in _DEPTH_KEYS.items():
        section = getattr(config, name, None)  # T5Gemma's
        if section is not None and getattr(section, "num_hidden_layers", None) is not None:
            stacks.append(Stack(name, section.num_hidden_layers, native_key(section, "num_hidden_layers"), name))
        elif count := next((key for key in counts if isinstance(getattr(config, key, None), int)), None):
            stacks.append(Stack(name, getattr(config, count), count))
    return tuple(stacks) if len(stacks) == len(_DEPTH_KEYS) else ()


def layer_modules(model: PreTrainedModel, stack: Stack) -> list[nn.Module]:
    """Return the modules of one stack's layers, in order.

    Raises:
        RecipeError: the model's modules do not match the number of layers in its config.
    """
    found: dict[int, nn.Module] = {}
    for name, module in model.named_modules():
        match = (_CAUSAL_LAYER if stack.name == "model" else _STACK_LAYER).match(f"{name}.")
        if match and not match["rest"] and match.groupdict().get("stack", "model") == stack.name:
            found[int(match["layer"])] = module
    if sorted(found) != list(range(stack.depth)):
        raise RecipeError(
            f"the layers of a {model.config.model_type} model cannot be identified, so none can be left out to measure it",
            setting="student.init.choose",
            fix="set it to 'even', or list the layers in student.init.layers",
        )
    return [found[layer] for layer in range(stack.depth)]


def native_key(config: PretrainedConfig | type[PretrainedConfig], key: str) -> str:
    """Return this kind of config's own name for a setting: GPT-2 has n_layer for num_hidden_layers."""
    return str(config.attribute_map.get(key, key))


def kept_layers(config: PretrainedConfig, layers: Layers | StackLayers) -> list[Kept]:
    """Return the layers of each stack that a student keeps: a number of evenly spaced ones, or those listed.

    Args:
        config: the teacher's config.
        layers: `student.init.layers`; a number or a list applies to every stack.

    Raises:
        RecipeError: the teacher does not have these layers.
    """
    stacks = stacks_of(config)
    if not stacks:
        raise RecipeError(
            f"the teacher's config does not say which layers a {config.model_type} model has: it has several parts with "
            "layers",
            setting=_KEY,
            fix="set student.init to {model: a small text model of the same tokenizer}",
        )
    if not isinstance(layers, StackLayers):
        return [_kept(stack, layers, _KEY) for stack in stacks]
    if len(stacks) == 1:
        named = " and ".join(name for name, of in layers if of is not None)
        raise RecipeError(
            f"it names layers of the {named}, but the teacher, a {config.model_type}, is a causal model with one stack of "
            f"{stacks[0].depth} layers",
            setting=_KEY,
            fix=f"set it to a number such as {stacks[0].depth // 2 or 1}, or to a list",
        )
    return [_kept(stack, getattr(layers, stack.name) or stack.depth, f"{_KEY}.{stack.name}") for stack in stacks]


def _kept(stack: Stack, layers: Layers, setting: str) -> Kept:
    depth = stack.depth
    hint = ", or set the layers of each stack: {encoder: ..., decoder: ...}"
    if isinstance(layers, int) and layers > depth:
        raise RecipeError(
            f"{stack.words} has only {depth} layers",
            setting=setting,
            value=layers,
            fix=f"set it to a number from 1 to {depth}" + (hint if setting == _KEY and stack.name != "model" else ""),
        )
    kept = evenly_spaced(layers, depth) if isinstance(layers, int) else [*layers]
    if max(kept) >= depth:
        raise RecipeError(
            f"{stack.words} has no layer {max(kept)}",
            setting=setting,
            value=kept,
            fix=f"use layers from 0 to {depth - 1}",
        )
    return Kept(stack, tuple(kept))


def evenly_spaced(count: int, total: int) -> list[int]:
    """Return `count` of `total` indices (of layers, or of rows), evenly spaced, with the first and the last."""
    if count == 1:
        return [0]
    return [round(index * (total - 1) / (count - 1)) for index in range(count)]


def config_for_layers(config: PretrainedConfig, kept: Sequence[Kept]) -> dict[str, Any]:
    """Return a config's settings for the kept layers, also where it has one value per layer (layer_types of Gemma)."""
    settings: dict[str, Any] = config.to_dict()
    for one in kept:
        section = settings if one.stack.section is None else settings[one.stack.section]
        if one.stack.name != "decoder" or one.stack.section is not None:  # both stacks' lists are the encoder's (LED)
            _choose(section, one)
        section[one.stack.count] = len(one.layers)
    return settings


def _choose(settings: dict[str, Any], kept: Kept) -> None:
    for key, value in settings.items():
        listed = isinstance(value, list) and len(value) == kept.stack.depth
        if listed and not key.endswith("token_id") and key != "architectures":
            settings[key] = [value[layer] for layer in kept.layers]


def weights_for_layers(weights: Mapping[str, Tensor], kept: Sequence[Kept]) -> dict[str, Tensor]:
    """Return the weights of the kept layers under their new numbers, and all weights outside the layers."""
    by_stack = {one.stack.name: one.layers for one in kept}
    pattern = _CAUSAL_LAYER if "model" in by_stack else _STACK_LAYER
    result = {}
    for name, tensor in weights.items():
        match = pattern.match(name)
        if match is None:
            result[name] = tensor
            continue
        found = match.groupdict()
        before, layers = found["before"] or "", by_stack[found.get("stack", "model")]
        layer = int(found["layer"])
        path = f"{before}{found['part']}"
        if layer == 0 and _SHARED_BIAS in found["rest"] and f"{path}.1.{found['rest']}" not in weights:
            result[name] = tensor
        elif layer in layers:
            result[f"{path}.{layers.index(layer)}.{found['rest']}"] = tensor
    return result

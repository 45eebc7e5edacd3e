"""The stacks of layers of a model, by its config: one in a causal model, an encoder's and a decoder's in the others.

    kept = kept_layers(config, {"encoder": 3, "decoder": [0, 5]})     # which layers of each stack a student keeps
    settings = with_layers(config, kept)                              # the config for these
    weights = renumbered(teacher.state_dict(), kept)                  # their weights, under their new numbers

T5 has one table of relative positions for a whole stack, and keeps it in the first layer: it goes into the first layer of
the student, whichever that was in the teacher.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from stillhouse.errors import RecipeError
from stillhouse.recipe.student import Layers, StackLayers

if TYPE_CHECKING:
    from torch import Tensor, nn
    from transformers import PretrainedConfig, PreTrainedModel

_KEY = "student.init.layers"
_COUNTS = {  # what configs call the number of layers of each stack
    "encoder": ("num_layers", "encoder_layers", "num_encoder_layers"),
    "decoder": ("num_decoder_layers", "decoder_layers"),
}
_PARTS = r"layers|h|blocks|block"  # what models call a stack: model.layers.7.mlp.up_proj.weight
_OF_ONE = re.compile(rf"^(?P<before>.*?\.)??(?P<part>{_PARTS})\.(?P<layer>\d+)\.(?P<rest>.*)$")
_OF_TWO = re.compile(
    rf"^(?P<before>(?:.*?\.)??(?P<stack>encoder|decoder)\.)(?P<part>{_PARTS})\.(?P<layer>\d+)\.(?P<rest>.*)$"
)
_FOR_ALL = "relative_attention_bias"  # what the first layer has for the whole stack, where only that has one


@dataclass(frozen=True)
class Stack:
    """One stack of layers, as a config has it."""

    name: str  # encoder or decoder; of a causal model "model"
    depth: int
    count: str  # what the config calls the number of its layers
    section: str | None = None  # of the config that is the stack's, where it has one

    @property
    def words(self) -> str:
        """Who has the layers, in an error."""
        return "the teacher" if self.name == "model" else f"the teacher's {self.name}"


@dataclass(frozen=True)
class Kept:
    """Which layers of a stack are kept, counted from 0."""

    stack: Stack
    layers: tuple[int, ...]


def stacks_of(config: PretrainedConfig) -> tuple[Stack, ...]:
    """The stacks of a model: one, or the encoder and the decoder; none where the config does not say."""
    if not config.is_encoder_decoder:
        depth = getattr(config, "num_hidden_layers", None)
        return () if depth is None else (Stack("model", depth, own_name(config, "num_hidden_layers")),)
    stacks = []
    for name, counts in _COUNTS.items():
        section = getattr(config, name, None)  # T5Gemma's
        if section is not None and getattr(section, "num_hidden_layers", None) is not None:
            stacks.append(Stack(name, section.num_hidden_layers, own_name(section, "num_hidden_layers"), name))
        elif count := next((key for key in counts if isinstance(getattr(config, key, None), int)), None):
            stacks.append(Stack(name, getattr(config, count), count))
    return tuple(stacks) if len(stacks) == len(_COUNTS) else ()


def layer_modules(model: PreTrainedModel, stack: Stack) -> list[nn.Module]:
    """The modules of one stack's layers, in order.

    Raises:
        RecipeError: the model does not keep them in a list of as many modules as its config says.
    """
    found: dict[int, nn.Module] = {}
    for name, module in model.named_modules():
        match = (_OF_ONE if stack.name == "model" else _OF_TWO).match(f"{name}.")
        if match and not match["rest"] and match.groupdict().get("stack", "model") == stack.name:
            found[int(match["layer"])] = module
    if sorted(found) != list(range(stack.depth)):
        raise RecipeError(
            f"student.init.choose: the layers of a {model.config.model_type} model cannot be told apart, so none can be "
            "left out to measure it: set choose to even, or list the layers"
        )
    return [found[layer] for layer in range(stack.depth)]


def own_name(config: PretrainedConfig | type[PretrainedConfig], key: str) -> str:
    """What this kind of config calls a setting: GPT-2 says n_layer for num_hidden_layers."""
    return str(config.attribute_map.get(key, key))


def kept_layers(config: PretrainedConfig, layers: Layers | StackLayers) -> list[Kept]:
    """Which layers of each stack a student keeps: so many, evenly spaced, or the ones that are listed.

    Args:
        config: the teacher's.
        layers: `student.init.layers`; a number or a list stands for every stack.

    Raises:
        RecipeError: the teacher does not have them.
    """
    stacks = stacks_of(config)
    if not stacks:
        raise RecipeError(
            f"student.init takes layers of the teacher, and a {config.model_type} model has several parts with layers: set "
            "student.init to {model: a small text model of the same tokenizer}"
        )
    if not isinstance(layers, StackLayers):
        return [_kept(stack, layers, _KEY) for stack in stacks]
    if len(stacks) == 1:
        named = " and ".join(name for name, of in layers if of is not None)
        raise RecipeError(
            f"{_KEY} names layers of the {named}, and the teacher, a {config.model_type}, is a causal model with one "
            f"stack of {stacks[0].depth} layers: give a number such as {stacks[0].depth // 2 or 1}, or a list"
        )
    return [_kept(stack, getattr(layers, stack.name) or stack.depth, f"{_KEY}.{stack.name}") for stack in stacks]


def _kept(stack: Stack, layers: Layers, setting: str) -> Kept:
    depth = stack.depth
    each = "" if stack.name == "model" else ", or give each stack its own: {encoder: ..., decoder: ...}"
    if isinstance(layers, int) and layers > depth:
        raise RecipeError(
            f"{setting} is {layers}, and {stack.words} has only {depth}: choose 1 to {depth}"
            + (each if setting == _KEY else "")
        )
    kept = evenly_spaced(layers, depth) if isinstance(layers, int) else [*layers]
    if max(kept) >= depth:
        theirs = "the teacher's" if stack.name == "model" else f"those of {stack.words}"
        raise RecipeError(f"{setting} names layer {max(kept)}, and {theirs} are 0 to {depth - 1}")
    return Kept(stack, tuple(kept))


def evenly_spaced(layers: int, of: int) -> list[int]:
    """Which layers a shallower student keeps: evenly spaced, the first and the last among them."""
    if layers == 1:
        return [0]
    return [round(place * (of - 1) / (layers - 1)) for place in range(layers)]


def with_layers(config: PretrainedConfig, kept: Sequence[Kept]) -> dict[str, Any]:
    """The settings of a config for these of its layers; where it lists one value a layer, theirs (layer_types of Gemma)."""
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


def renumbered(weights: Mapping[str, Tensor], kept: Sequence[Kept]) -> dict[str, Tensor]:
    """Weights of the kept layers under their new numbers, and all that belongs to no layer."""
    by_stack = {one.stack.name: one.layers for one in kept}
    pattern = _OF_ONE if "model" in by_stack else _OF_TWO
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
        if layer == 0 and _FOR_ALL in found["rest"] and f"{path}.1.{found['rest']}" not in weights:
            result[name] = tensor
        elif layer in layers:
            result[f"{path}.{layers.index(layer)}.{found['rest']}"] = tensor
    return result

"""The importance of each layer of a teacher, measured on rows of the dataset.

    measured = MeasuredTeacher(model, batches)
    leave_one_out(measured)               # {"model": (8.8, 4.2, ...)}: nats per completion token lost without each layer
    greedy(measured, "model", 14, begin)  # layers 17, 18, ... in the order of their removal, with the KL after each
    block_influence(measured)             # {"model": (0.41, 0.22, ...)}, from one forward pass

Leaving a layer out means that its input becomes its output; a student without the layer computes exactly this (layers.py).
There are two measures:

- KL(teacher || teacher without the layer), in nats per completion token. It takes one forward pass per layer; the layers
  below the omitted one are computed once for all of these passes. Greedy removal omits the layer that costs least, then the
  next one with the first already omitted, and so on. It detects that of two redundant layers one must stay.
- Block influence (Men et al., arXiv 2403.03853): 1 - cos(input, output) of a layer, averaged over tokens. One forward pass
  measures all layers.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from transformers import PreTrainedModel

from stillhouse.models.head import Parts, split
from stillhouse.models.layout import TokenBatch, at_least_float32
from stillhouse.progress import Progress, silent
from stillhouse.student.losses.forward_kl import divergence
from stillhouse.student.start.stacks import layer_modules, stacks_of

CANDIDATES = 4  # layers that a step of greedy removal tries: those with the lowest cost when last measured
_AT_ONCE = 512  # positions whose full distributions are compared at once
_DOING = "Measuring layers"

Scores = dict[str, tuple[float, ...]]  # stack -> one score per layer of the teacher


@dataclass(frozen=True)
class Removal:
    """Layers of one stack in the order in which greedy removal omits them."""

    order: tuple[int, ...] = ()
    kl: tuple[float, ...] = ()  # nats per completion token, with this layer and all before it in `order` omitted
    costs: tuple[float, ...] = ()  # one per layer of the stack: the KL when last measured; orders the candidates


@dataclass(frozen=True)
class MeasuredTeacher:
    """A teacher in evaluation mode, and the rows on which its layers are measured."""

    model: PreTrainedModel
    batches: Sequence[TokenBatch]

    @cached_property
    def parts(self) -> Parts:
        return split(self.model)

    @cached_property
    def layers(self) -> dict[str, Sequence[nn.Module]]:
        """The layers of each stack."""
        return {stack.name: layer_modules(self.model, stack) for stack in stacks_of(self.model.config)}

    @cached_property
    def whole(self) -> list[Tensor]:
        """The teacher's last hidden states at the positions that predict a completion token, one tensor per batch."""
        return [self.hidden(batch) for batch in self.batches]

    def hidden(self, batch: TokenBatch) -> Tensor:
        """Return the last hidden states of a batch: (completion tokens, width)."""
        more = {} if batch.decoder_input_ids is None else {"decoder_input_ids": batch.decoder_input_ids}
        return self.parts.hidden(batch.input_ids, batch.labels, attention_mask=batch.attention_mask, **more)

    def divergence(self, index: int, hidden: Tensor) -> float:
        """Return KL(teacher || the model that computed `hidden`), summed over a batch's completion tokens, in nats."""
        total = 0.0
        for teacher, other in zip(self.whole[index].split(_AT_ONCE), hidden.split(_AT_ONCE), strict=True):
            both = [self.parts.head(states).log_softmax(dim=-1) for states in (teacher, other)]
            total += float(divergence(*both).double().sum())
        return total

    @property
    def tokens(self) -> int:
        """Number of completion tokens of all rows."""
        return sum(len(states) for states in self.whole)


@torch.inference_mode()
def leave_one_out(measured: MeasuredTeacher, progress: Progress = silent) -> Scores:
    """Return KL(teacher || teacher without the layer) for each layer of each stack, in nats per completion token."""
    sums = {name: [0.0] * len(layers) for name, layers in measured.layers.items()}
    tokens = measured.tokens  # runs the whole teacher, before any layer is omitted
    total, done = len(measured.batches) * sum(map(len, sums.values())), 0
    with _layer_switches(measured) as switches:
        for index, batch in enumerate(measured.batches):
            switches.record(measured, batch)
            for name, layer in switches.layers():
                with switches.without(name, layer):
                    sums[name][layer] += measured.divergence(index, measured.hidden(batch))
                done += 1
                progress(_DOING, done, total)
    return {name: tuple(total / tokens for total in of) for name, of in sums.items()}


@torch.inference_mode()
def greedy(
    measured: MeasuredTeacher,
    stack: str,
    remove: int,
    resume_from: Removal,
    progress: Progress = silent,
    on_step: Callable[[Removal], None] = lambda _: None,
) -> Removal:
    """Omit layers of one stack one after another, each time the one whose removal costs least.

    Each step tries the `CANDIDATES` layers whose removal cost least when last measured, so the number of forward passes
    grows with `remove` and not with its product with the depth.

    Args:
        measured: the teacher and the rows.
        stack: the name of the stack; all others stay whole.
        remove: the number of its layers to omit.
        resume_from: the removal so far; at first `Removal(costs=...)` with the stack's scores of `leave_one_out`.
        progress: called after every step with the activity, the layers removed and the total.
        on_step: called after every step with the removal so far.

    Returns:
        At least `remove` layers; more if `resume_from` has more.
    """
    done = resume_from
    while len(done.order) < remove:
        left = [layer for layer in range(len(done.costs)) if layer not in done.order]
        tried = sorted(left, key=lambda layer: (done.costs[layer], layer))[:CANDIDATES]
        found = _kl_without_each(measured, stack, done.order, tried)
        best = min(tried, key=lambda layer: (found[layer], layer))
        costs = tuple(found.get(layer, cost) for layer, cost in enumerate(done.costs))
        done = Removal((*done.order, best), (*done.kl, found[best]), costs)
        on_step(done)
        progress(_DOING, len(done.order), remove)
    return done


def _kl_without_each(
    measured: MeasuredTeacher, stack: str, gone: Sequence[int], tried: Iterable[int]
) -> dict[int, float]:
    """Return, for each layer in `tried`, the KL with it and the layers `gone` omitted."""
    sums = dict.fromkeys(tried, 0.0)
    tokens = measured.tokens  # runs the whole teacher, before any layer is omitted
    with _layer_switches(measured) as switches:
        switches.leave_out(stack, gone)
        for index, batch in enumerate(measured.batches):
            switches.record(measured, batch)
            for layer in sums:
                with switches.without(stack, layer):
                    sums[layer] += measured.divergence(index, measured.hidden(batch))
    return {layer: total / tokens for layer, total in sums.items()}


@torch.inference_mode()
def block_influence(measured: MeasuredTeacher, progress: Progress = silent) -> Scores:
    """Return 1 - cos(input, output) of each layer of each stack, averaged over all tokens without padding: 0 to 2."""
    sums = {name: [0.0] * len(layers) for name, layers in measured.layers.items()}
    tokens = dict.fromkeys(sums, 0)
    with _layer_switches(measured) as switches:
        for index, batch in enumerate(measured.batches):
            switches.record(measured, batch)
            for name, of in switches.by_stack.items():
                mask = _mask(batch, name)
                tokens[name] += int(mask.sum())
                for layer, switch in enumerate(of):
                    given, output = at_least_float32(switch.given), at_least_float32(_states(switch.output))
                    similar = F.cosine_similarity(given, output, dim=-1)[mask]
                    sums[name][layer] += float((1 - similar).double().sum())
            progress(_DOING, index + 1, len(measured.batches))
    return {name: tuple(total / tokens[name] for total in of) for name, of in sums.items()}


def _mask(batch: TokenBatch, stack: str) -> Tensor:
    """Return the mask of a stack's positions that are tokens: (batch, time) bool."""
    return batch.attention_mask.bool() if stack != "decoder" else batch.completion_mask


# -------------------------------------------------------------------------------------------------------------- switches


class _LayerSwitch:
    """Replaces a layer's `forward`, and decides whether the layer runs."""

    def __init__(self, run: Callable[..., Any]) -> None:
        self._run = run
        self.left_out = False
        self.repeating = False  # returns the output of its last run
        self.recording = False
        self.given: Tensor = torch.empty(0)
        self.output: Any = None

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        if self.repeating:
            return self.output
        given: Tensor = args[0] if args else kwargs["hidden_states"]
        output = given if self.left_out and isinstance(self.output, Tensor) else self._run(*args, **kwargs)
        if self.left_out:  # a T5 layer also returns the position bias, which the next one needs
            output = given if isinstance(output, Tensor) else (given, *output[1:])
        if self.recording:
            self.given, self.output = given, output
        return output


class _Switches:
    """The switches of all layers, by stack, in the order in which they run."""

    def __init__(self, by_stack: dict[str, list[_LayerSwitch]]) -> None:
        self.by_stack = by_stack

    def layers(self) -> Iterator[tuple[str, int]]:
        """Yield every layer as its stack and its number."""
        return ((name, layer) for name, of in self.by_stack.items() for layer in range(len(of)))

    def leave_out(self, stack: str, layers: Sequence[int]) -> None:
        """Omit layers of a stack permanently."""
        for layer in layers:
            self.by_stack[stack][layer].left_out = True

    def record(self, measured: MeasuredTeacher, batch: TokenBatch) -> None:
        """Run a batch and record the input and output of every layer."""
        self._set("recording", True)
        measured.hidden(batch)
        self._set("recording", False)

    @contextmanager
    def without(self, stack: str, layer: int) -> Iterator[None]:
        """Omit one more layer inside the block; the layers before it repeat their recorded output."""
        before = list(self.layers())[: list(self.layers()).index((stack, layer))]
        out = self.by_stack[stack][layer]
        was = out.left_out
        for name, number in before:
            self.by_stack[name][number].repeating = True
        out.left_out = True
        try:
            yield
        finally:
            self._set("repeating", False)
            out.left_out = was

    def _set(self, name: str, value: bool) -> None:
        for of in self.by_stack.values():
            for switch in of:
                setattr(switch, name, value)


def _states(output: Any) -> Tensor:
    """Return the hidden states in a layer's output."""
    states: Tensor = output if isinstance(output, Tensor) else output[0]
    return states


@contextmanager
def _layer_switches(measured: MeasuredTeacher) -> Iterator[_Switches]:
    """Replace the layers' `forward` with switches inside the block."""
    switches = _Switches(
        {name: [_LayerSwitch(one.forward) for one in layers] for name, layers in measured.layers.items()}
    )
    try:
        for name, layers in measured.layers.items():
            for module, switch in zip(layers, switches.by_stack[name], strict=True):
                module.forward = switch
        yield switches
    finally:
        for layers in measured.layers.values():
            for module in layers:
                module.__dict__.pop("forward", None)

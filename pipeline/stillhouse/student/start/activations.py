"""Activation statistics of a model's neurons, heads and channels on rows of the dataset: one forward pass, no gradients.

    activations = measure_activations(model, batches)
    activations.save(folder / "activations.npz")
    activations = Activations.load(folder / "activations.npz")

They are root mean squares over the rows' tokens, a ranking by activations alone as in Minitron (arXiv 2407.14679, section
2.2):

- feed-forward neuron: its activation, the input of the second matrix;
- attention head: the length of its output, the input of the output projection;
- hidden channel: its share in the outputs of the norms. For each norm the mean square of x_i / rms(x) is measured, before
  the norm's weight, by which widths.py multiplies. The same statistics say how much larger a norm's outputs become when
  channels are removed.

A neuron or head counts as 0 if its columns of the next matrix are 0, so that nothing reads it. Otherwise the size of these
columns is ignored: including it made students of the demo teacher worse in trials outside the benchmarks.
"""

from __future__ import annotations

import io
import zipfile
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn
from transformers import PreTrainedModel

from stillhouse.models.head import split
from stillhouse.models.layout import IGNORED, TokenBatch, at_least_float32
from stillhouse.storage.durable import write_atomically
from stillhouse.student.start.axes import Axis, Sizes, axes_of, sizes_of


@dataclass(frozen=True)
class Activations:
    """Statistics measured on a model, in float32, by the name of the module.

    `model.layers.3.mlp`: (neurons,), rms of each activation. `model.layers.3.self_attn`: (heads,), rms length of each
    head's output. `model.layers.3.input_layernorm`: (hidden,), mean square of the normalised input, before its weight.
    """

    scores: Mapping[str, NDArray[np.float32]]

    def save(self, path: Path) -> None:
        """Write the statistics to `path` (.npz), atomically."""
        buffer = io.BytesIO()
        np.savez(buffer, **self.scores)  # type: ignore[arg-type]  # no score has the name of one of its arguments
        write_atomically(path, buffer.getvalue())

    @classmethod
    def load(cls, path: Path) -> Activations:
        """Load what `save` wrote.

        Raises:
            FileNotFoundError: the file does not exist.
            ValueError: the file is damaged.
        """
        try:
            with np.load(io.BytesIO(path.read_bytes()), allow_pickle=False) as arrays:
                return cls({name: arrays[name] for name in arrays.files})
        except (zipfile.BadZipFile, EOFError) as error:
            raise ValueError(f"{path} is damaged ({error}): remove it, and it is measured again") from None


def measure_activations(model: PreTrainedModel, batches: Iterable[TokenBatch]) -> Activations:
    """Run the model on rows and measure the activations of its parts, ignoring padding.

    The same rows give the same statistics however they are batched, up to float rounding.

    Args:
        model: a model of one of `axes.FAMILIES`.
        batches: batches on any device; at least one.
    """
    sums: dict[str, Tensor] = {}
    tokens: dict[str, int] = {}
    decoder = split(model).hidden
    training = model.training
    model.eval()
    try:
        with torch.inference_mode(), _measured(model, sums, tokens) as masks:
            for batch in batches:
                here = batch.to(model.device)
                masks |= _token_masks(here)
                arguments: dict[str, Any] = {"attention_mask": here.attention_mask}
                if here.decoder_input_ids is not None:
                    arguments["decoder_input_ids"] = here.decoder_input_ids
                decoder(here.input_ids, here.labels, **arguments)
    finally:
        model.train(training)
    return Activations({name: _mean(name, total, tokens[name]) for name, total in sums.items()})


def normalised(norm: nn.Module, hidden: Tensor) -> Tensor:
    """Return x / rms(x), a root-mean-square norm's output before it multiplies by its weight, in at least float32."""
    epsilon: Any = getattr(norm, "variance_epsilon", None) or getattr(norm, "eps", 0.0)
    hidden = at_least_float32(hidden)
    return hidden * torch.rsqrt(hidden.square().mean(-1, keepdim=True) + epsilon)


def measured_as(module: str) -> str:
    """Return the key of a module's statistics: for a matrix its feed-forward or attention module, for a norm the norm."""
    axes = axes_of(f"{module}.weight")
    return module if axes == (Axis.HIDDEN,) else module.rpartition(".")[0]


@contextmanager
def _measured(model: PreTrainedModel, sums: dict[str, Tensor], tokens: dict[str, int]) -> Iterator[dict[str, Tensor]]:
    """Add up the statistics of every forward pass inside the block; the yielded masks select the tokens to count."""
    masks: dict[str, Tensor] = {}
    sizes = sizes_of(model.config)
    handles = []

    def add(name: str, measure: Any, module: nn.Module, inputs: tuple[Tensor, ...]) -> None:
        mask = masks["encoder" if name.startswith("encoder.") else "decoder"]
        squares = measure(module, inputs[0][mask]).sum(0, dtype=torch.float64)
        sums[name] = sums[name] + squares if name in sums else squares
        tokens[name] = tokens.get(name, 0) + int(mask.sum())

    try:
        for name, module in model.named_modules():
            if (measure := _measure_of(name, sizes)) is not None:
                handles.append(module.register_forward_pre_hook(partial(add, measured_as(name), measure)))
        yield masks
    finally:
        for handle in handles:
            handle.remove()


def _measure_of(module: str, sizes: Sizes) -> Any:
    """Return the function that measures a module's inputs (tokens, width); None if the module is not measured."""
    return {
        (Axis.HIDDEN, Axis.NEURONS): _neurons,
        (Axis.HIDDEN, Axis.HEADS): partial(_heads, sizes),
        (Axis.HIDDEN,): lambda norm, hidden: normalised(norm, hidden).square(),
    }.get(axes_of(f"{module}.weight") or ())


def _neurons(second: nn.Linear, inputs: Tensor) -> Tensor:
    """(tokens, neurons) -> (tokens, neurons): squared activations, 0 for a neuron that nothing reads."""
    return at_least_float32(inputs).square() * second.weight.any(0)


def _heads(sizes: Sizes, projection: nn.Linear, inputs: Tensor) -> Tensor:
    """(tokens, heads * channels) -> (tokens, heads): squared length of each head's output, 0 where nothing reads it."""
    shape = (sizes.heads, sizes.head_dim)
    read = projection.weight.any(0).unflatten(0, shape)  # (heads, channels)
    squares: Tensor = at_least_float32(inputs).unflatten(1, shape).square() * read
    return squares.sum(-1)


def _token_masks(batch: TokenBatch) -> dict[str, Tensor]:
    """Return the masks of positions that are not padding, (batch, time) bool, by stack; a causal model's is `decoder`."""
    read = batch.attention_mask.bool()
    if batch.decoder_input_ids is None:
        return {"decoder": read}
    return {"encoder": read, "decoder": batch.labels != IGNORED}


def _mean(name: str, total: Tensor, tokens: int) -> NDArray[np.float32]:
    """Return the root mean square for neurons and heads; for norms the mean square, which is additive over channels."""
    mean = total / max(tokens, 1)
    figures = mean if axes_of(f"{name}.weight") == (Axis.HIDDEN,) else mean.sqrt()
    return figures.float().cpu().numpy()

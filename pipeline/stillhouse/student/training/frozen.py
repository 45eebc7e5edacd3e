"""Parts of a student that keep their weights while the others are trained.

    student: {init: {from: teacher, layers: 10}, freeze: [embedding, head]}

A student made of its teacher's layers has the teacher's embedding and output layer, which fit already and are most of its
weights if the vocabulary is large. Frozen, they need neither gradients nor optimizer memory, and the noise of randomly
drawn labels does not disturb them (docs/distillation.md).
"""

from __future__ import annotations

from collections.abc import Sequence

from transformers import PreTrainedModel

from stillhouse.recipe.student import Part


def freeze(model: PreTrainedModel, parts: Sequence[Part]) -> None:
    """Freeze these parts; where embedding and head are tied, freezing either freezes both."""
    layers = {"embedding": model.get_input_embeddings(), "head": model.get_output_embeddings()}
    for part in parts:
        layers[part].requires_grad_(False)

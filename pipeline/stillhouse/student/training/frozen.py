"""Parts of a student that stay as they are while the rest of it learns.

    student: {init: {from: teacher, layers: 10}, freeze: [embedding, head]}

A student made of its teacher's layers has the teacher's embedding and output layer, which fit already, and over a large
vocabulary they are most of its weights. Frozen, they need neither gradients nor an optimizer's memory, and labels that are
drawn at random do not shake them (docs/distillation.md).
"""

from __future__ import annotations

from collections.abc import Sequence

from transformers import PreTrainedModel

from stillhouse.recipe.student import Part


def freeze(model: PreTrainedModel, parts: Sequence[Part]) -> None:
    """Let these parts keep their weights; where embedding and head share them, either is both."""
    layers = {"embedding": model.get_input_embeddings(), "head": model.get_output_embeddings()}
    for part in parts:
        layers[part].requires_grad_(False)

"""Build a student from whole layers of the teacher: `copy_layers(teacher, kept)`."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from transformers import PreTrainedModel

from stillhouse.errors import TrainingError
from stillhouse.models.load import token_ids_alone
from stillhouse.student.start.stacks import Kept, config_for_layers, weights_for_layers


def copy_layers(teacher: PreTrainedModel, kept: Sequence[Kept]) -> PreTrainedModel:
    """Return a model of the teacher's kind and width with only the layers `kept`; everything else is the teacher's.

    Raises:
        TrainingError: the teacher's weights do not fit the model that its config with these layers describes.
    """
    config = type(teacher.config).from_dict(config_for_layers(teacher.config, kept))
    student = type(teacher)(config).to(teacher.dtype)
    untie_head(student, teacher)
    missing, unexpected = student.load_state_dict(weights_for_layers(teacher.state_dict(), kept), strict=False)
    if missing or unexpected:
        raise TrainingError(
            f"layers of a {config.model_type} model cannot be copied: {[*missing, *unexpected][:3]} do not match",
            setting="student.init.layers",
            fix="set student.init.model to a small model of the same tokenizer instead",
        )
    student.generation_config = token_ids_alone(teacher.generation_config)
    return student


def untie_head(student: PreTrainedModel, teacher: PreTrainedModel) -> None:
    """Untie the student's head if the teacher's is untied, whatever the config says: every T5's says that it is tied."""
    embedding, head = teacher.get_input_embeddings(), teacher.get_output_embeddings()
    own = student.get_output_embeddings()
    if head is not None and head.weight is not embedding.weight and own.weight is student.get_input_embeddings().weight:
        own.weight = torch.nn.Parameter(own.weight.detach().clone())

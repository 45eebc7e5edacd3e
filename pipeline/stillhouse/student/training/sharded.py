"""FSDP: refused where accelerate would ignore it, and the one change of a model that it needs."""

from __future__ import annotations

from typing import Any

from transformers import PreTrainedModel, TrainingArguments

from stillhouse.errors import RecipeError
from stillhouse.processes.ranks import is_launched, processes
from stillhouse.recipe.student import StudentSettings


def check_sharding(student: StudentSettings, arguments: TrainingArguments) -> None:
    """Refuse FSDP that cannot run here, before any training.

    Raises:
        RecipeError: FSDP on a CPU, or with one process.
    """
    if not arguments.fsdp:
        return
    setting = student.setting("train.fsdp")
    if arguments.use_cpu:
        raise RecipeError(
            "training runs on a CPU, where accelerate ignores it and trains with DistributedDataParallel",
            setting=setting,
            value=arguments.fsdp,
            fix="train on a machine with accelerators, or remove fsdp",
        )
    launch = student.launch
    if processes() == 1 and (launch is None or launch.num_processes == 1 or is_launched()):
        raise RecipeError(
            "it shards the student over several processes, and this training has one",
            setting=setting,
            value=arguments.fsdp,
            fix=f"set {student.setting('launch')} to {{num_processes: 2}}, use `torchrun --nproc_per_node 2 -m stillhouse "
            "distill RECIPE`, or remove fsdp",
        )


def share_embedding_module(model: PreTrainedModel) -> None:
    """Replace layers of an encoder and a decoder that share the embedding's weights with the embedding itself, in place.

    accelerate puts the embedding and the head into one FSDP2 group, and does not handle a third and a fourth layer with the
    same weights, as T5 and BART have them: torch then refuses to shard the model.
    """
    embedding: Any = model.get_input_embeddings()
    for module in [*model.modules()]:
        for name, layer in [*module.named_children()]:
            if (
                type(layer) is type(embedding)
                and layer.weight is embedding.weight
                and _scale(layer) == _scale(embedding)
            ):
                setattr(module, name, embedding)


def _scale(embedding: Any) -> float:
    return float(getattr(embedding, "embed_scale", 1.0))  # BART's

"""FSDP on the CPU, where accelerate silently ignores `fsdp: true` and trains with DistributedDataParallel.

Here the CPU shards too, with the same code of torch (`fully_shard`, FSDP2) over gloo, so that the tests of sharding run on
machines without an accelerator.
"""

from __future__ import annotations

from typing import Any

from accelerate import Accelerator, FullyShardedDataParallelPlugin, PartialState
from accelerate.state import AcceleratorState
from accelerate.utils import DistributedType
from transformers import PreTrainedModel, TrainingArguments

from stillhouse.errors import RecipeError
from stillhouse.processes.ranks import is_launched, processes
from stillhouse.recipe.student import StudentSettings


def check_sharding(student: StudentSettings, arguments: TrainingArguments) -> None:
    """Refuse FSDP that cannot run here, before any training.

    Raises:
        RecipeError: FSDP with one process, or FSDP1 without an accelerator.
    """
    if not arguments.fsdp:
        return
    launch = student.launch
    if processes() == 1 and (launch is None or launch.num_processes == 1 or is_launched()):
        raise RecipeError(
            "it shards the student over several processes, and this training has one",
            setting=student.setting("train.fsdp"),
            fix=f"set {student.setting('launch')} to {{num_processes: 2}}, use `torchrun --nproc_per_node 2 -m stillhouse "
            "distill RECIPE`, or remove fsdp",
        )
    if arguments.use_cpu and arguments.fsdp_plugin_args["fsdp_version"] != 2:
        raise RecipeError(
            "FSDP1 does not run on a CPU",
            setting=student.setting("train.fsdp_config.version"),
            value=1,
            fix="remove `version`, which selects FSDP2",
        )


def shard_on_cpu(accelerator: Accelerator, arguments: TrainingArguments) -> bool:
    """Make accelerate shard on the CPU as on an accelerator, if FSDP is requested; returns whether it does."""
    if not arguments.fsdp or accelerator.distributed_type != DistributedType.MULTI_CPU:
        return False
    plugin = FullyShardedDataParallelPlugin(**arguments.fsdp_plugin_args)
    if arguments.bf16:
        plugin.set_mixed_precision("bf16")
    for state in (PartialState, AcceleratorState):  # accelerate copies one shared state to the other, so set both
        state._shared_state["distributed_type"] = DistributedType.FSDP
    AcceleratorState._shared_state["fsdp_plugin"] = plugin
    return True


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

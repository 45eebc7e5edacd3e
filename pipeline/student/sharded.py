"""FSDP where accelerate does without: on the CPU it takes `fsdp: true` in silence and trains by DistributedDataParallel.

What is asked for is done here as well, with the same code of torch (`fully_shard`, FSDP2) over gloo: the tests of sharding
run on machines without an accelerator.
"""

from __future__ import annotations

from accelerate import Accelerator, FullyShardedDataParallelPlugin, PartialState
from accelerate.state import AcceleratorState
from accelerate.utils import DistributedType
from transformers import TrainingArguments

from pipeline.errors import RecipeError


def shard_on_cpu(accelerator: Accelerator, arguments: TrainingArguments) -> bool:
    """Have accelerate shard as it does elsewhere, if that is asked for; whether it was.

    Raises:
        RecipeError: FSDP1 is asked for, which needs an accelerator.
    """
    if not arguments.fsdp or accelerator.distributed_type != DistributedType.MULTI_CPU:
        return False
    plugin = FullyShardedDataParallelPlugin(**arguments.fsdp_plugin_args)
    if plugin.fsdp_version != 2:
        raise RecipeError(
            "student.train.fsdp_config.version is 1, and FSDP1 does not run on a CPU: leave `version` out, which is FSDP2"
        )
    if arguments.bf16:
        plugin.set_mixed_precision("bf16")
    for state in (PartialState, AcceleratorState):  # either is copied from the other at any time
        state._shared_state["distributed_type"] = DistributedType.FSDP
    AcceleratorState._shared_state["fsdp_plugin"] = plugin
    return True

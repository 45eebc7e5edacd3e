"""FSDP on the CPU over gloo, so that sharding is tested on machines without an accelerator.

There accelerate ignores `fsdp`, and Stillhouse refuses it. With this change of accelerate the rest is the code that shards
on accelerators: torch's `fully_shard`, accelerate's preparation of model and optimizer, and ours.
"""

from __future__ import annotations

from typing import Any

from accelerate import FullyShardedDataParallelPlugin, PartialState
from accelerate.state import AcceleratorState
from accelerate.utils import DistributedType

from stillhouse.student.training import arguments


def shard_on_cpu() -> None:
    """Make this process shard on the CPU where `fsdp` is set."""
    initialise = AcceleratorState.__init__

    def initialise_sharded(
        self: AcceleratorState, *given: Any, fsdp_plugin: FullyShardedDataParallelPlugin | None = None, **named: Any
    ) -> None:
        initialise(self, *given, fsdp_plugin=fsdp_plugin, **named)
        if fsdp_plugin is not None and self.distributed_type == DistributedType.MULTI_CPU:
            if self.mixed_precision != "no":
                fsdp_plugin.set_mixed_precision(self.mixed_precision)
            self.fsdp_plugin = fsdp_plugin
            for state in (self, PartialState()):  # every instance has the attributes of all
                state.distributed_type = DistributedType.FSDP

    AcceleratorState.__init__ = initialise_sharded
    arguments.check_sharding = lambda *_: None

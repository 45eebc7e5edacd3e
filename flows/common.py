"""What every flow does alike: read the recipe, log progress, and keep results out of Prefect's storage."""

from __future__ import annotations

from typing import Any

from prefect import get_run_logger
from prefect.cache_policies import NO_CACHE

from pipeline.progress import Progress
from pipeline.terminal import PlainProgress

# Persistent caching stays off: whether a shard or a student is done is for the store to say (docs/architecture.md).
TASK: dict[str, Any] = {"cache_policy": NO_CACHE, "persist_result": False}
FLOW: dict[str, Any] = {"persist_result": False, "validate_parameters": True}


def logged_progress() -> Progress:
    """Progress as lines of the run's log."""
    return PlainProgress(get_run_logger().info)

"""Write strict JSON: numbers that are not finite, which JSON cannot express, become null."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from typing import Any


def to_json(value: Any, indent: int | None = None) -> str:
    """Return a value as JSON text; NaN and infinities become null."""
    return json.dumps(replace_nonfinite(value), ensure_ascii=False, indent=indent, allow_nan=False)


def replace_nonfinite(value: Any) -> Any:
    """Return the value with every float that is not finite replaced by None."""
    if isinstance(value, float):
        return value if math.isfinite(value) else None
    if isinstance(value, Mapping):
        return {key: replace_nonfinite(inner) for key, inner in value.items()}
    if isinstance(value, list | tuple):
        return [replace_nonfinite(inner) for inner in value]
    return value

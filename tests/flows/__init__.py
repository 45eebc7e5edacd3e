"""Flows on a real Prefect API."""

import pytest

# What Prefect warns of itself is no error; a socket or a file that is left open is, whoever collects it.
PREFECTS_WARNINGS = pytest.mark.filterwarnings(
    "default", "error::ResourceWarning", "error::pytest.PytestUnraisableExceptionWarning"
)

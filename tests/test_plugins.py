"""Kinds are the modules that define one; what lies beside them in their folder is no kind."""

from types import ModuleType

import pytest

import stillhouse.evaluation.metrics
import stillhouse.exchange.formats
import stillhouse.quality
import stillhouse.student.losses
import stillhouse.teachers
from stillhouse.plugins import built_in_kinds

KINDS = [
    (stillhouse.teachers, {"anthropic", "ensemble", "openai", "reference", "scripted", "transformers", "vllm"}),
    (stillhouse.exchange.formats, {"axolotl", "distillkit", "openai", "openai-log", "sharegpt", "trl"}),
    (stillhouse.evaluation.metrics, {"chrf", "edit-distance", "exact-match", "rouge", "token-f1"}),
    (
        stillhouse.student.losses,
        {
            "adaptive-kl",
            "forward-kl",
            "generalized-jsd",
            "minillm",
            "reverse-kl",
            "skewed-kl",
            "skewed-reverse-kl",
            "total-variation",
        },
    ),
    (
        stillhouse.quality,
        {
            "best-of",
            "duplicates",
            "empty",
            "finish-reason",
            "json-schema",
            "length",
            "reference-match",
            "refusal",
            "regex",
        }
        | {"repetition"},
    ),
]


@pytest.mark.parametrize(("package", "kinds"), KINDS, ids=[package.__name__ for package, _ in KINDS])
def test_every_kind_is_found_and_nothing_else(package: ModuleType, kinds: set[str]) -> None:
    assert set(built_in_kinds(package)) == kinds

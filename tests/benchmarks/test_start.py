"""What the benchmark of starts reckons with, apart from any model."""

import json
from dataclasses import asdict

import pytest

from benchmarks.start_pruning import SMALL, WHOLE, Plan, interval, plan_of


@pytest.mark.parametrize("plan", [SMALL, WHOLE])
def test_a_plan_survives_its_way_into_the_other_process(plan: Plan) -> None:
    assert plan_of(json.dumps(asdict(plan))) == plan


def test_an_interval_over_three_seeds_is_students() -> None:
    assert interval([1.0, 1.1, 1.2]) == "1.10 [0.85, 1.35]"  # 4.303 * 0.1 / sqrt(3) = 0.248
    assert interval([1.0]) == "1.00"

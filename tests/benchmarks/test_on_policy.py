"""The on-policy benchmark: its ratios, its table, and the figures of seeds that are kept."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from benchmarks import on_policy_rounds
from benchmarks.on_policy_rounds import EPOCHS, HALF, ROUNDS, START, STORED, TEACHER, TRL
from benchmarks.on_policy_ways import plan_of

WAYS = (ROUNDS, HALF, EPOCHS, TRL, STORED)


def seed_of(shift: float) -> dict[str, Any]:
    """The figures of a seed with two prompts of 4 and 2 tokens."""

    def model(kl: float, repeats: list[bool]) -> dict[str, Any]:
        return {
            "teacher_text": [[4 * kl, 0.0, 4], [2 * kl, 0.0, 2]],
            "own_text": [[4 * kl, 8 * kl, 4], [2 * kl, 4 * kl, 2]],
            "repeats": repeats,
            "cut": [False, False],
            "rouge": [0.5, 0.25],
            "texts": ["a | b", "c"],
        }

    return {
        "measured": f"*Measured, {shift}.*",
        "trained": {way: {"seconds": 70.0 if way == ROUNDS else 100.0, "gigabytes": 2.0, "folder": ""} for way in WAYS},
        "models": {
            START: model(2.0, [True, True]),
            **{way: model(1.0 + shift, [True, False]) for way in WAYS},
            TEACHER: model(0.0, [False, False]),
        },
    }


def test_ratios_are_of_means_over_tokens_and_seeds() -> None:
    before, after = [seed_of(0.0)["models"][START]] * 2, [seed_of(shift)["models"][ROUNDS] for shift in (0.0, 0.5)]
    found = on_policy_rounds._ratio(
        *on_policy_rounds._figure(after, "own_text", 1), *on_policy_rounds._figure(before, "own_text", 1)
    )
    assert found == "0.62 [0.62, 0.62]"  # (2 + 3) / 2 of 4 nats a token, the same on every prompt
    sums, counts = on_policy_rounds._figure(after, "repeats")
    assert (sums / counts).tolist() == [1.0, 0.0]
    assert on_policy_rounds._ratio(np.ones(2), np.ones(2), np.zeros(2), np.ones(2)) == "–"


def test_the_section_has_every_way_and_each_machine_once() -> None:
    text = on_policy_rounds._section(plan_of(small=False), [seed_of(0.0), seed_of(0.5), seed_of(0.5)])
    for way in (START, *WAYS, TEACHER):
        assert f"\n| {way} |" in text
    assert text.count("*Measured, 0.5.*") == 1
    assert "| time, of TRL's | at most 0.7 | 0.70 |" in text
    assert "a \\| b" in text


def test_seeds_are_kept_until_the_settings_change(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(on_policy_rounds, "FIGURES", tmp_path / "figures.json")
    plan = plan_of(small=False)
    assert on_policy_rounds._kept(plan) == {}
    kept = {"settings": on_policy_rounds._settings(plan), "seeds": {"0": seed_of(0.0)}}
    on_policy_rounds.FIGURES.write_text(json.dumps(kept))
    assert on_policy_rounds._kept(plan) == {"0": seed_of(0.0)}
    assert on_policy_rounds._kept(plan_of(small=True)) == {}

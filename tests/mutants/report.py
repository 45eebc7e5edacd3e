"""The table in docs/mutants.md: how many mutants of each room a test found, and each one that none did, with the reason.

Reasons are in reasons.toml, by the change that they are about: the module, and what became of which line.
"""

from __future__ import annotations

import tomllib
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from benchmarks.shared import table
from tests.mutants.left_out import REASONS
from tests.mutants.rooms import ROOMS, room_of

REASONS_FILE = Path(__file__).parent / "reasons.toml"
NO_REASON = "**none yet: write a test, or a reason into tests/mutants/reasons.toml**"


@dataclass(frozen=True)
class Outcome:
    """One mutant that was run."""

    module: str
    line: int
    diff: str  # a unified diff
    killed: bool

    @property
    def change(self) -> str:
        """What became of which line, in one line: `was -> is`."""
        lines = self.diff.splitlines()
        was, now = (
            " ".join(line[1:].strip() for line in lines if line.startswith(sign) and not line.startswith(sign * 3))
            for sign in "-+"
        )
        return f"{was} -> {now}"

    @property
    def key(self) -> str:
        """What its reason is filed under: it outlasts changes elsewhere in the module."""
        return f"{self.module}: {self.change}"


def known_reasons() -> dict[str, str]:
    """The reason of each change that has one."""
    listed = tomllib.loads(REASONS_FILE.read_text("utf-8")).get("survivor", [])
    return {one["change"]: one["reason"] for one in listed}


def without_reason(outcomes: Sequence[Outcome]) -> str:
    """Entries for reasons.toml, whose reasons are to be written."""
    known = known_reasons()
    missing = [one.key for one in outcomes if not one.killed and one.key not in known]
    return "".join(f"\n[[survivor]]\nchange = '''{key}'''\nreason = \"\"\n" for key in missing)


def section(outcomes: Sequence[Outcome], *, sample: int, seed: int, places: int, machine: str) -> str:
    """The section, as Markdown."""
    reasons = known_reasons()
    killed = sum(one.killed for one in outcomes)
    survivors = [one for one in outcomes if not one.killed]
    parts = [
        f"{len(outcomes)} mutants, a sample of seed {seed} ({sample} asked for) from {places:,} places: {killed} were "
        f"killed, {100 * killed / len(outcomes):.1f} % (wanted: 95 %).",
        table(["room", "mutants", "killed", "survived"], list(_by_room(outcomes))),
        "Left out are " + "; ".join(REASONS) + ".",
    ]
    if survivors:
        parts += [
            "Survivors, each with the reason why no test fails:",
            _survivors(survivors, reasons),
        ]
    return "\n\n".join([*parts, machine])


def _by_room(outcomes: Sequence[Outcome]) -> Iterator[list[str]]:
    for room in ROOMS:
        own = [one.killed for one in outcomes if room_of(one.module) == room]
        yield [room.name, str(len(own)), str(sum(own)), str(len(own) - sum(own))]


def _survivors(outcomes: Sequence[Outcome], reasons: Mapping[str, str]) -> str:
    rows = ["| place | change | reason |", "| --- | --- | --- |"]
    for one in sorted(outcomes, key=lambda one: (one.module, one.line)):
        change = one.change.replace("|", "\\|").replace(" -> ", "` → `", 1)
        rows.append(f"| `{one.module}:{one.line}` | `{change}` | {reasons.get(one.key, NO_REASON)} |")
    return "\n".join(rows)

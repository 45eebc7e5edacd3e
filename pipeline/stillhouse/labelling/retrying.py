"""Ask again what a teacher's error rejected: `stillhouse label RECIPE --retry-rejected [REASON...]`.

    retry = Retry(frozenset({"timeout"}))       # no reason: all of them
    retry.check(teacher_rejections(dataset))
    retry.wants("timeout", answered=False)

Only rejections of the stage `teacher` are asked for again, in a new version of the same plan. Those that came with an
answer (an empty text, a refusal in words) were paid for, and are asked for again only where their reason is named. What a
filter rejected is an answer too: it is judged again when the filters are changed.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Iterator
from dataclasses import dataclass

import pyarrow as pa
import pyarrow.compute as pc

from stillhouse.dataset.store import Dataset
from stillhouse.errors import UsageError

STAGE = "teacher"
COLUMNS = ("stage", "reason", "completion")  # what says whether a rejection is asked for again


@dataclass(frozen=True)
class Retry:
    """Which of the teacher's rejections are asked for again: those of some reasons, or, where none is named, all."""

    reasons: frozenset[str] = frozenset()

    @classmethod
    def of(cls, reasons: Iterable[str] | None) -> Retry | None:
        """A retry of some reasons, of all where the list is empty; None for None."""
        return None if reasons is None else cls(frozenset(reasons))

    def wants(self, reason: str, *, answered: bool) -> bool:
        """Whether a rejection of this reason is asked for again; `answered`: it came with an answer."""
        return reason in self.reasons if self.reasons else not answered

    def check(self, found: Counter[tuple[str, bool]]) -> None:
        """Refuse a reason that nothing was rejected for.

        Args:
            found: rejections of the teacher, as `teacher_rejections` counts them.

        Raises:
            UsageError: a reason is not among them.
        """
        counts: Counter[str] = Counter()
        for (reason, _), count in found.items():
            counts[reason] += count
        for reason in sorted(self.reasons - counts.keys()):
            listed = ", ".join(f"{name} ({count:,})" for name, count in sorted(counts.items())) or "nothing"
            raise UsageError(
                f"--retry-rejected names {reason!r}, and the teacher's errors rejected {listed}: name one of these, or "
                "none for all. What a filter rejected is judged again when `quality` is changed."
            )


def teacher_rejections(dataset: Dataset) -> Counter[tuple[str, bool]]:
    """How many requests of a version the teacher's errors rejected, by reason and whether an answer came with it."""
    found: Counter[tuple[str, bool]] = Counter()
    for entry in dataset.files("rejected"):
        with dataset.open(entry) as parquet:
            rows = parquet.read(columns=list(COLUMNS))
        found.update((reason, answered) for lost, reason, answered in rejections_in(rows) if lost)
    return found


def rejections_in(rows: pa.RecordBatch | pa.Table) -> Iterator[tuple[bool, str, bool]]:
    """Of each rejection: whether the teacher's error rejected it, its reason, and whether an answer came with it."""
    stage, reason, completion = (rows[name] for name in COLUMNS)
    of_teacher, answered = pc.equal(stage, STAGE), pc.is_valid(completion)
    yield from zip(of_teacher.to_pylist(), reason.to_pylist(), answered.to_pylist(), strict=True)

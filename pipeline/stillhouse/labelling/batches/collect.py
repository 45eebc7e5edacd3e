"""Read the results of a batch job that has ended, and store them in the journal.

Results come in any order; lines may be missing, come twice, or name requests that were never asked. Answers that the
journal has already, because an earlier run was killed while it collected, are stored once. What the job cost is the sum
over all its answers, so it does not depend on how often the results were read.
"""

from __future__ import annotations

import logging
from collections.abc import Sequence
from dataclasses import dataclass, field

from stillhouse.labelling.batches.jobs import BatchJob, StoredRequest
from stillhouse.labelling.journal import Change, Journal
from stillhouse.labelling.outcome_records import record_of
from stillhouse.records import Completion, Rejection
from stillhouse.teachers.base import Answer, Outcome, Refusal
from stillhouse.teachers.batches import Batches, RemoteBatch

log = logging.getLogger(__name__)

_AT_ONCE = 500  # records in a commit


@dataclass
class Collected:
    """What came of a job."""

    lines: int = 0  # that were read
    answered: int = 0
    rejected: int = 0
    cost_usd: float = 0.0
    failed: dict[str, str] = field(default_factory=dict)  # key -> why it has no outcome; expired requests are not here
    example: str = ""  # why one of the requests has no outcome
    refusal: str = ""  # what every request would get (no credit); its requests have no outcome and did not fail
    refused_all: Refusal | None = None  # the refusal that no answer contradicts: nothing was stored


async def collect(
    job: BatchJob,
    remote: RemoteBatch,
    teacher: Batches,
    journal: Journal,
    *,
    worst_each: float,
    limit: int | None,
) -> Collected:
    """Store the outcomes of a job; see the module's docstring.

    Args:
        job: the job.
        remote: what the provider says of it.
        teacher: where to read the results.
        journal: where to store them.
        worst_each: dollars to count for an answer whose cost is not known.
        limit: equal refusals that every prompt may get, with no answer, that end the run (`label.refusals_in_a_row`).

    Raises:
        AttemptFailed: the results cannot be read now, or are incomplete.
        StorageFailed: the journal cannot be written.
    """
    requests, found = job.requests(), Collected()
    seen: set[str] = set()
    waiting: list[Completion | Rejection] = []
    suspects: list[tuple[StoredRequest, Refusal]] = []
    unknown = doubled = billed = 0
    assert job.card.remote_id is not None
    async for result in teacher.batch_results(job.card.remote_id, job.folder):
        found.lines += 1
        request = requests.find(result.custom_id)
        if request is None or result.custom_id in seen:
            unknown, doubled = unknown + (request is None), doubled + (request is not None)
            continue
        seen.add(result.custom_id)
        outcome = result.outcome
        if outcome is None and result.refuses_all:
            found.refusal = result.detail
            continue
        if outcome is None:
            found.failed[request.key] = result.detail
            found.example = found.example or result.detail
            continue
        found.cost_usd += _cost(outcome, worst_each)
        billed += isinstance(outcome, Answer) or outcome.answer is not None
        if isinstance(outcome, Refusal) and outcome.suspect is not None and outcome.answer is None:
            suspects.append((request, outcome))
            continue
        waiting.append(_record(job, request, outcome))
        _count(found, outcome)
        if len(waiting) >= _AT_ONCE:
            await _store(waiting, journal)
            waiting = []
    await _store(waiting, journal)
    if suspects and not found.answered and limit is not None and len(suspects) >= min(limit, job.card.requests):
        found.refused_all = suspects[0][1]
        return found
    for start in range(0, len(suspects), _AT_ONCE):
        part = suspects[start : start + _AT_ONCE]
        await _store([_record(job, request, refusal) for request, refusal in part], journal)
    found.rejected += len(suspects)
    if seen or not unknown:  # else it is another's job
        found.cost_usd += worst_each * max(0, remote.completed - billed)  # answers that got lost were paid for
    missing = [key for key in requests if key not in seen]
    found.failed |= dict.fromkeys(missing, "the results have no line for this request") if not _expires(remote) else {}
    if unknown or doubled:
        log.warning(
            "batch job %s: %d lines name requests that it does not have, %d came twice", job.card.id, unknown, doubled
        )
    return found


def _expires(remote: RemoteBatch) -> bool:
    """Whether requests without a line are those that the job had no time for."""
    return remote.state in {"expired", "cancelled", "canceled", "ended"}


async def _store(records: Sequence[Completion | Rejection], journal: Journal) -> None:
    known = journal.answered([record.id for record in records])
    new = [record for record in records if record.id not in known]
    if new:
        await journal.commit(Change(outcomes=new))


def _record(job: BatchJob, request: StoredRequest, outcome: Outcome) -> Completion | Rejection:
    return record_of(request.key, request.prompt, request.sample, outcome, teacher=job.card.model)


def _count(found: Collected, outcome: Outcome) -> None:
    if isinstance(outcome, Answer):
        found.answered += 1
    else:
        found.rejected += 1


def _cost(outcome: Outcome, worst_each: float) -> float:
    answer = outcome if isinstance(outcome, Answer) else outcome.answer
    if answer is None:
        return 0.0
    return worst_each if answer.cost_usd is None else answer.cost_usd

"""Distinguish a refusal of one prompt from a refusal that every prompt would get.

    tracker = RefusalTracker(label.refusals_in_a_row)
    with tracker.request():                  # from the first attempt to the outcome
        ...
        tracker.record_answer()                  # the teacher answered something
        await tracker.confirm(refusal)           # returns once this refusal is known to concern its prompt only

A server may send "400: your credit balance is too low" with the same status as "400: this prompt has an empty turn", so the
message alone cannot decide. The results of other prompts do:

- An answer to another prompt after the refusal shows that the teacher works: the refusal concerns its prompt only.
- `limit` prompts refused with the same status, with no answer in between, end the run.
- When no open request is left that could decide, the refusals concern their prompts if this run had any answer, or if the
  server gives a reason for each.

Until then a refusal is pending: it is not in the journal, so if the run ends, the next run sends these prompts again. A
refusal with a reason (too long, against the policy) is counted only before the first answer. It ends the run only after
max(4 * `limit`, half of the open requests) of them: long prompts are sent first, and a source may have many that are too
long.
"""

from __future__ import annotations

import asyncio
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager

from stillhouse.errors import TeacherRefused, TeacherUnavailable
from stillhouse.teachers.base import Refusal

_EXPLAINED = {"too-long", "policy"}  # reasons that explain what is wrong with the prompt
_EXPLAINED_FACTOR = 4  # multiplies `limit` for refusals with such a reason


class RefusalTracker:
    """Decides on the refusals of a run; shared by all its requests. Use it from one event loop."""

    def __init__(self, limit: int | None) -> None:
        """`limit` equal refusals in a row end the run; None: every refusal counts as its prompt's."""
        self._limit = limit
        self._open = 0  # requests without an outcome, including those held back
        self._pending: dict[asyncio.Future[None], Refusal] = {}
        self._counts: Counter[str] = Counter()  # refusals since the last answer, by status (and reason, if explained)
        self._unreadable: set[str] = set()  # keys of requests with unreadable answers, before the first answer
        self._any_answer = False

    @contextmanager
    def request(self) -> Iterator[None]:
        """Context of one request, around everything that is done for it."""
        self._open += 1
        try:
            yield
        except BaseException:
            self._open -= 1  # the run ends, or this request is retried: it decides nothing
            raise
        self._open -= 1
        self._decide()

    def record_answer(self) -> None:
        """Record an answer of the teacher: earlier refusals concern their prompts only."""
        self._any_answer = True
        self._counts.clear()
        self._accept_pending()

    def record_unreadable(self, key: str, detail: str) -> None:
        """Record that an answer to the request `key` could not be read.

        Raises:
            TeacherUnavailable: `limit` requests got an unreadable answer, and none a readable one.
        """
        if self._limit is None or self._any_answer:
            return
        self._unreadable.add(key)
        if len(self._unreadable) >= self._limit:
            raise self._fail_pending(
                TeacherUnavailable(
                    f"{detail}; no answer of this server could be read ({len(self._unreadable)} requests tried)",
                    fix="check teacher.options and the base URL: the server must be an OpenAI-compatible API that answers "
                    "without streaming",
                )
            )

    async def confirm(self, refusal: Refusal) -> None:
        """Wait until a refusal is known to concern its prompt only.

        Raises:
            TeacherRefused: every prompt would be refused with this status.
            TeacherUnavailable: every prompt fails in this way, however often it is retried.
        """
        if self._limit is None or refusal.suspect is None:
            return
        explained = refusal.reason in _EXPLAINED
        if explained and self._any_answer:
            return
        key = f"{refusal.suspect} {refusal.reason}" if explained else refusal.suspect
        self._counts[key] += 1
        if self._counts[key] >= (max(self._limit * _EXPLAINED_FACTOR, self._open // 2) if explained else self._limit):
            raise self._fail_pending(self._error(refusal, f"{self._counts[key]} prompts in a row"))
        future = asyncio.get_running_loop().create_future()
        self._pending[future] = refusal
        try:
            self._decide()
            await future
        finally:
            self._pending.pop(future, None)

    def _decide(self) -> None:
        """Decide on the refusals held back, if no other request is open."""
        if not self._pending or self._open > len(self._pending):
            return
        unexplained = [refusal for refusal in self._pending.values() if refusal.reason not in _EXPLAINED]
        if self._any_answer or not unexplained:
            self._accept_pending()
        else:
            refusal = unexplained[0]
            self._fail_pending(
                self._error(
                    refusal, f"all {len(self._pending)} prompts" if len(self._pending) > 1 else "the one prompt"
                )
            )

    def _accept_pending(self) -> None:
        for future in self._pending:
            if not future.done():
                future.set_result(None)

    def _fail_pending(self, error: TeacherUnavailable) -> TeacherUnavailable:
        for future in self._pending:
            if not future.done():
                future.set_exception(error)
        return error

    def _error(self, refusal: Refusal, prompts: str) -> TeacherUnavailable:
        kind = TeacherRefused if refusal.suspect and refusal.suspect.isdigit() else TeacherUnavailable
        return kind(
            f"{refusal.detail}; the server rejected {prompts} with this error and answered none, so the cause is probably "
            "the account or the request settings. No prompt was marked as rejected",
            fix="check teacher.model, teacher.options, the API key and the account, and run again; if the prompts are the "
            f"cause, set label.refusals_in_a_row (now {self._limit}) to null, and each becomes a rejection",
        )

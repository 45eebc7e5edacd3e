"""Distinguish a refusal of one prompt from a refusal that every prompt would get.

    streak = RefusalStreak(label.refusals_in_a_row)
    with streak.request():                      # from the first attempt to the outcome
        ...
        streak.answered()                       # the teacher answered something
        await streak.confirm(refusal)           # returns once this refusal is known to concern its prompt only

A server may send "400: your credit balance is too low" with the same status as "400: this prompt has an empty turn", so the
message alone cannot decide. The results of other prompts do:

- An answer to another prompt after the refusal shows that the teacher works: the refusal concerns its prompt only.
- `limit` prompts refused with the same status, with no answer in between, end the run.
- When no open request is left that could decide, the refusals concern their prompts if this run had any answer, or if the
  server gives a reason for each.

Until then a refusal is held back: it is not in the journal, so if the run ends, the next run sends these prompts again. A
refusal with a reason (too long, against the policy) counts only until the first answer, and ends the run only after at
least 4 times `limit` prompts and half of the open requests: long prompts are sent first, and a source may have many that
are too long.
"""

from __future__ import annotations

import asyncio
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager

from stillhouse.errors import TeacherRefused, TeacherUnavailable
from stillhouse.teachers.base import Refusal

_REASON_KNOWN = {"too-long", "policy"}  # reasons that explain what is wrong with the prompt
_KNOWN_FACTOR = 4  # multiplies `limit` for refusals with such a reason


class RefusalStreak:
    """Decides on the refusals of a run; shared by all its requests. Use it from one event loop."""

    def __init__(self, limit: int | None) -> None:
        """`limit` equal refusals in a row end the run; None: every refusal counts as its prompt's."""
        self._limit = limit
        self._open = 0  # requests without an outcome, including those held back
        self._held: dict[asyncio.Future[None], Refusal] = {}
        self._alike: Counter[str] = Counter()  # refusals since the last answer, by status (and reason, if known)
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
        self._conclude()

    def answered(self) -> None:
        """Record an answer of the teacher: earlier refusals concern their prompts only."""
        self._any_answer = True
        self._alike.clear()
        self._release()

    def unreadable(self, key: str, detail: str) -> None:
        """Record that an answer to the request `key` could not be read.

        Raises:
            TeacherUnavailable: `limit` requests got an unreadable answer, and none a readable one.
        """
        if self._limit is None or self._any_answer:
            return
        self._unreadable.add(key)
        if len(self._unreadable) >= self._limit:
            raise self._fail(
                TeacherUnavailable(
                    f"{detail}. No answer of this server can be read ({len(self._unreadable)} requests tried). Check "
                    "teacher.options and the base URL: is it an OpenAI-compatible API that answers without streaming?"
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
        known = refusal.reason in _REASON_KNOWN
        if known and self._any_answer:
            return
        alike = f"{refusal.suspect} {refusal.reason}" if known else refusal.suspect
        self._alike[alike] += 1
        if self._alike[alike] >= (max(self._limit * _KNOWN_FACTOR, self._open // 2) if known else self._limit):
            raise self._fail(self._error(refusal, f"{self._alike[alike]} prompts in a row"))
        held = asyncio.get_running_loop().create_future()
        self._held[held] = refusal
        try:
            self._conclude()
            await held
        finally:
            self._held.pop(held, None)

    def _conclude(self) -> None:
        """Decide on the refusals held back, if no other request is open."""
        if not self._held or self._open > len(self._held):
            return
        unexplained = [refusal for refusal in self._held.values() if refusal.reason not in _REASON_KNOWN]
        if self._any_answer or not unexplained:
            self._release()
        else:
            refusal = unexplained[0]
            self._fail(
                self._error(refusal, f"all {len(self._held)} prompts" if len(self._held) > 1 else "the one prompt")
            )

    def _release(self) -> None:
        for held in self._held:
            if not held.done():
                held.set_result(None)

    def _fail(self, error: TeacherUnavailable) -> TeacherUnavailable:
        for held in self._held:
            if not held.done():
                held.set_exception(error)
        return error

    def _error(self, refusal: Refusal, who: str) -> TeacherUnavailable:
        kind = TeacherRefused if refusal.suspect and refusal.suspect.isdigit() else TeacherUnavailable
        return kind(
            f"{refusal.detail}. It refused {who} so and answered none, which says nothing of the prompts: check "
            "teacher.model, teacher.options, the API key and the account. None of them counts as rejected: run again "
            "afterwards. If the prompts are at fault, set label.refusals_in_a_row (now "
            f"{self._limit}) to null, and each is a rejection."
        )

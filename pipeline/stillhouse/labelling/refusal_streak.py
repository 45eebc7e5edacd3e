"""Tell a refusal of one prompt from a refusal that every prompt would get.

    streak = RefusalStreak(label.refusals_in_a_row)
    with streak.request():                      # from the first attempt to the outcome
        ...
        streak.answered()                       # the teacher answered something
        await streak.confirm(refusal)           # returns once it is known that this refusal is the prompt's own

A server says "400: your credit balance is too low" with the same status as "400: this prompt has an empty turn", so words
cannot decide. What other prompts get does:

- An answer to another prompt, after the refusal, shows that the teacher answers: the refusal is the prompt's own.
- `limit` prompts that are refused with the same status, and none answered between them, end the run.
- When no request is left that could show either, the refusals are the prompts' own if this run had an answer at all, or if
  the server gives a reason for each.

Until then a refusal is held back: it is not in the journal, so a run that ends asks these prompts again. A refusal that the
server gives a reason for (too long, against its policy) counts only until the first answer, and half of all requests at
hand are needed: long prompts are asked first, and a source may have many that are too long.
"""

from __future__ import annotations

import asyncio
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager

from stillhouse.errors import TeacherRefused, TeacherUnavailable
from stillhouse.teachers.base import Refusal

_REASON_KNOWN = {"too-long", "policy"}  # the server says what is wrong with the prompt
_KNOWN_FACTOR = 4  # times as many of those, at the least


class RefusalStreak:
    """Shared by every request of a run; used from one event loop."""

    def __init__(self, limit: int | None) -> None:
        """`limit` prompts refused alike end the run; None: each refusal is its prompt's own."""
        self._limit = limit
        self._open = 0  # requests without an outcome, those held back included
        self._held: dict[asyncio.Future[None], Refusal] = {}
        self._alike: Counter[str] = Counter()  # refusals since the last answer, by what was refused alike
        self._unreadable: set[str] = set()  # requests whose answer could not be read, before the first answer
        self._any_answer = False

    @contextmanager
    def request(self) -> Iterator[None]:
        """Around everything that is done for one request."""
        self._open += 1
        try:
            yield
        except BaseException:
            self._open -= 1  # the run ends, or this request is asked again: nothing is concluded from it
            raise
        self._open -= 1
        self._conclude()

    def answered(self) -> None:
        """The teacher has answered: what was refused before is the prompts' own."""
        self._any_answer = True
        self._alike.clear()
        self._release()

    def unreadable(self, key: str, detail: str) -> None:
        """An answer to the request `key` could not be read.

        Raises:
            TeacherUnavailable: `limit` requests got such an answer, and none a readable one.
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
        """Wait until it is known that a refusal is its prompt's own.

        Raises:
            TeacherRefused: every prompt would be refused with this status.
            TeacherUnavailable: every prompt fails in this way, however often it is asked.
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
        """Decide on what is held back, where no request is left that could be answered."""
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

"""How labelling goes: how much is done, how fast, for how many dollars, and how long it will still take.

    print(job.metrics())      # 1,200 of 5,000, 3 min left, 14 rejected, 812 tokens/s, $0.42, 64 in flight

The engine only counts; what is told here is worked out when somebody looks, so looking costs the requests nothing.
"""

from __future__ import annotations

import time
from collections import deque
from dataclasses import dataclass

_WINDOW = 60.0  # seconds that a rate is taken over
_LOOK_EVERY = 1.0  # seconds between two looks that are kept: no more than a window's worth of them


@dataclass
class Counts:
    """What a run counts, in whole numbers; only its own requests."""

    answered: int = 0  # requests that ended with an outcome, rejected ones included
    rejected: int = 0  # of them, by the teacher; filters judge later, a shard at a time
    in_flight: int = 0  # sent, and not yet durable
    completion_tokens: int = 0  # as the teacher counted them, of rejected answers too
    began: float | None = None  # time.monotonic() of the first request, when the teacher was ready


@dataclass(frozen=True)
class Metrics:
    """One look at a run. Requests are those of the whole version, dollars those of all runs of the dataset."""

    requests: int  # of the version
    done: int  # of them: those with an outcome, from earlier runs or this one
    earlier: int  # of those that are done: by earlier runs, as far as they have been come across
    rejected: int  # by the teacher, in this run
    in_flight: int  # sent, and not yet durable
    completion_tokens: int  # in this run
    tokens_per_second: float | None  # completion tokens, over the last minute; None before the first answer
    mean_tokens_per_second: float | None  # the same over the whole run
    spent_usd: float
    budget_usd: float | None
    seconds_left: float | None  # at the last minute's rate; None where it is not known

    def __str__(self) -> str:
        return ", ".join([f"{self.done:,} of {self.requests:,}", *self.details()])

    @property
    def share(self) -> float:
        """What is done of it all, 0..1."""
        return self.done / self.requests if self.requests else 1.0

    def details(self) -> list[str]:
        """All but how much is done, the most wanted first, in a few words each; what is naught or not known is left out."""
        told = [
            (self.seconds_left, f"{duration(self.seconds_left or 0)} left"),
            (self.rejected, f"{self.rejected:,} rejected"),
            (self.tokens_per_second, f"{self.tokens_per_second or 0:,.0f} tokens/s"),
            (self.spent_usd, dollars(self.spent_usd)),
            (self.in_flight, f"{self.in_flight:,} in flight"),
        ]
        return [words for value, words in told if value]


class Meter:
    """Works rates out of counts; each look is compared with the one of a minute ago."""

    def __init__(self, counts: Counts) -> None:
        self._counts = counts
        self._looks: deque[tuple[float, int, int]] = deque()  # time.monotonic(), answered, tokens

    def look(
        self, requests: int, done: int, spent_usd: float, budget_usd: float | None, now: float | None = None
    ) -> Metrics:
        """The metrics of this moment, `now` by time.monotonic(); to be called from one thread."""
        counts = self._counts
        answers, tokens, mean = self._rates(time.monotonic() if now is None else now)
        return Metrics(
            requests=requests,
            done=done,
            earlier=max(0, done - counts.answered),
            rejected=counts.rejected,
            in_flight=counts.in_flight,
            completion_tokens=counts.completion_tokens,
            tokens_per_second=tokens,
            mean_tokens_per_second=mean,
            spent_usd=spent_usd,
            budget_usd=budget_usd,
            seconds_left=(requests - done) / answers if answers else None,
        )

    def _rates(self, now: float) -> tuple[float | None, float | None, float | None]:
        """Answers and tokens a second over the last minute, and tokens a second since the first request."""
        counts = self._counts
        if counts.began is None or not counts.answered:
            return None, None, None
        looks = self._looks
        if not looks:
            looks.append((counts.began, 0, 0))
        while len(looks) > 1 and looks[1][0] <= now - _WINDOW:
            looks.popleft()
        then, answered, tokens = looks[0]
        if now - looks[-1][0] >= _LOOK_EVERY:
            looks.append((now, counts.answered, counts.completion_tokens))
        seconds, whole = max(now - then, 1e-3), max(now - counts.began, 1e-3)
        return (
            (counts.answered - answered) / seconds,
            (counts.completion_tokens - tokens) / seconds,
            counts.completion_tokens / whole,
        )


def dollars(usd: float) -> str:
    """Dollars and cents, or as much more as a small sum needs."""
    return f"${usd:,.2f}" if usd >= 0.1 or not usd else f"${usd:.2g}" if usd >= 1e-4 else "less than $0.0001"


def duration(seconds: float) -> str:
    """Seconds for people: 40 s, 3 min, 2 h 5 min, 3 d 4 h."""
    if seconds < 60:
        return f"{round(seconds)} s"
    minutes = round(seconds / 60)
    if minutes < 60:
        return f"{minutes} min"
    hours, minutes = divmod(minutes, 60)
    if hours < 24:
        return f"{hours} h {minutes} min"
    return f"{hours // 24} d {hours % 24} h"

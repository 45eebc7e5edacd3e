"""Metrics of a labelling run: how much is done, how fast, at what cost, and the time remaining.

    print(job.metrics())      # 1,200 of 5,000, 3 min left, 14 rejected, 812 tokens/s, $0.42, 64 in flight

The engine only updates counters; the metrics are computed when they are read, so they do not slow down requests.
"""

from __future__ import annotations

import time
from collections import deque
from dataclasses import dataclass

from stillhouse.formatting import format_duration, format_usd

_WINDOW = 60.0  # seconds over which a rate is computed
_SAMPLE_EVERY = 1.0  # seconds between two stored samples, which bounds their number


@dataclass
class Counts:
    """The counters of one run; they cover its requests only."""

    answered: int = 0  # requests with an outcome, rejected ones included
    rejected: int = 0  # of these, rejected by the teacher; filters run later, shard by shard
    in_flight: int = 0  # requests sent whose answers are not yet durable
    completion_tokens: int = 0  # as counted by the teacher, rejected answers included
    started_at: float | None = None  # time.monotonic() when the teacher was ready and the first request was sent


@dataclass(frozen=True)
class Metrics:
    """A snapshot of a run. Requests are those of the whole version, dollars those of all runs of the dataset."""

    requests: int  # in the version
    done: int  # requests with an outcome, from this run or earlier ones
    earlier: int  # of these, done by earlier runs, as far as this run has counted them
    rejected: int  # rejected by the teacher in this run
    in_flight: int  # requests sent whose answers are not yet durable
    completion_tokens: int  # in this run
    tokens_per_second: float | None  # completion tokens per second over the last minute; None before the first answer
    mean_tokens_per_second: float | None  # the same over the whole run
    spent_usd: float
    budget_usd: float | None
    seconds_left: float | None  # at the rate of the last minute; None if that is not known

    def __str__(self) -> str:
        return ", ".join([f"{self.done:,} of {self.requests:,}", *self.details()])

    @property
    def share(self) -> float:
        """The fraction of requests that are done, 0..1."""
        return self.done / self.requests if self.requests else 1.0

    def details(self) -> list[str]:
        """Return all but the progress as short phrases, most important first, without zero and unknown values."""
        phrases = [
            (self.seconds_left, f"{format_duration(self.seconds_left or 0)} left"),
            (self.rejected, f"{self.rejected:,} rejected"),
            (self.tokens_per_second, f"{self.tokens_per_second or 0:,.0f} tokens/s"),
            (self.spent_usd, format_usd(self.spent_usd)),
            (self.in_flight, f"{self.in_flight:,} in flight"),
        ]
        return [words for value, words in phrases if value]


class Meter:
    """Computes rates from the counters, by comparing each sample with that of a minute ago."""

    def __init__(self, counts: Counts) -> None:
        self._counts = counts
        self._samples: deque[tuple[float, int, int]] = deque()  # time.monotonic(), answered, tokens

    def snapshot(
        self, requests: int, done: int, spent_usd: float, budget_usd: float | None, now: float | None = None
    ) -> Metrics:
        """Return the metrics at time `now` (time.monotonic()); call it from one thread."""
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
        """Return answers and tokens per second over the last minute, and tokens per second since the first request."""
        counts = self._counts
        if counts.started_at is None or not counts.answered:
            return None, None, None
        samples = self._samples
        if not samples:
            samples.append((counts.started_at, 0, 0))
        while len(samples) > 1 and samples[1][0] <= now - _WINDOW:
            samples.popleft()
        then, answered, tokens = samples[0]
        if now - samples[-1][0] >= _SAMPLE_EVERY:
            samples.append((now, counts.answered, counts.completion_tokens))
        seconds, whole = max(now - then, 1e-3), max(now - counts.started_at, 1e-3)
        return (
            (counts.answered - answered) / seconds,
            (counts.completion_tokens - tokens) / seconds,
            counts.completion_tokens / whole,
        )

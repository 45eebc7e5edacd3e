"""Estimate, before any money is spent, what labelling a recipe would send, cost and take.

    >>> estimate = estimate_labelling(recipe)
    >>> estimate.requests, estimate.answered, estimate.to_send
    (12, 12, 0)

Nothing is sent or written. Existing answers are counted in the journal and in finished versions. The expected answer length
is the mean of the newest version; without one, half of `max_tokens`.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import closing
from dataclasses import dataclass
from datetime import timedelta

import pyarrow.compute as pc
from rich.filesize import decimal

from stillhouse.dataset.manifest import Manifest
from stillhouse.dataset.store import Dataset, dataset_folder, journal_folder, open_dataset, versions
from stillhouse.formatting import format_usd
from stillhouse.labelling.budget import check_budget
from stillhouse.labelling.former_names import Former, FormerNames, former_names
from stillhouse.labelling.journal import Journal
from stillhouse.labelling.journal_view import JournalView
from stillhouse.labelling.new_version import advised_versions
from stillhouse.labelling.plan import LabelPlan, Shard, make_plan
from stillhouse.labelling.tokens import likely_prompt_tokens, most_prompt_tokens
from stillhouse.prompts.checks import PromptChecks
from stillhouse.recipe.label import LabelSettings
from stillhouse.recipe.recipe import Recipe
from stillhouse.storage.location import Location, RemotePath
from stillhouse.storage.temporary_database import temporary_database
from stillhouse.teachers.base import Request, Teacher, open_teacher, why_no_price
from stillhouse.teachers.batches import Batches

_TEXT_BYTES = 2  # per token of text, compressed, as a rule of thumb
_ROW_BYTES = 120  # per row: ids, names, counts, compressed
_TRACE_BYTES = 8  # per token: its id and its log-probability
_TOP_K_BYTES = 2.0  # per entry of a top-k label (docs/benchmarks.md: 50 of them take about 112)
_SAMPLED_BYTES = 0.8  # per draw of a sampled label


@dataclass(frozen=True)
class RoundsEstimate:
    """What scoring the rollouts of all rounds would take; nothing of it has been answered yet."""

    rounds: int
    requests: int
    expected_tokens: int  # of prompts and rollouts, which the teacher reads
    worst_tokens: int
    expected_usd: float | None  # None if the price is not known
    worst_usd: float | None
    seconds_at_limits: float | None  # None if no limit is set

    def lines(self) -> list[list[str]]:
        """Return names and values to show."""
        cost = (
            "not known"
            if self.expected_usd is None or self.worst_usd is None
            else f"about {format_usd(self.expected_usd)}, at most {format_usd(self.worst_usd)}"
        )
        time = "" if self.seconds_at_limits is None else f", {timedelta(seconds=round(self.seconds_at_limits))}"
        return [
            ["on-policy rounds", f"{self.rounds}: at most {self.requests:,} requests to score what the student writes"],
            ["tokens to score", f"about {self.expected_tokens:,}, at most {self.worst_tokens:,}{time}"],
            ["cost of rounds", cost],
        ]


@dataclass(frozen=True)
class Estimate:
    """What labelling would take. Tokens and dollars cover the requests still to send; bytes cover the whole version."""

    prompts: int
    duplicate_prompts: int
    requests: int
    answered: int
    to_send: int
    expected_prompt_tokens: int
    worst_prompt_tokens: int
    expected_completion_tokens: int
    worst_completion_tokens: int
    expected_usd: float | None  # None if the price is not known
    worst_usd: float | None
    spent_usd: float  # so far, for all versions
    budget_usd: float | None
    expected_bytes: int
    seconds_at_limits: float | None  # duration at the rate limits; None if no limit is set
    basis: str  # where the expected answer length comes from
    why_no_price: str = ""  # the reason, if the price is not known
    rounds: RoundsEstimate | None = None  # None: the recipe has no `on_policy`
    batch_usd: float | None = (
        None  # expected cost by batch jobs; None if the teacher has none, or its price is not known
    )
    worst_batch_usd: float | None = None

    def lines(self) -> list[list[str]]:
        """Return names and values to show: prompts, requests, tokens, cost, bytes and time."""
        sending = "nothing to send" if not self.to_send else f"{self.to_send:,} to send"
        duplicates = f" ({self.duplicate_prompts:,} more are duplicates)" if self.duplicate_prompts else ""
        seconds = self.seconds_at_limits
        time = (
            "not known: label.limits is not set, so the server decides"
            if seconds is None
            else f"{timedelta(seconds=round(seconds))} (hours:minutes:seconds) at label.limits"
        )
        budget = f" of a budget of {format_usd(self.budget_usd)}" if self.budget_usd is not None else ""
        tokens = f"about {self.expected_completion_tokens:,}, at most {self.worst_completion_tokens:,}"
        return [
            ["prompts", f"{self.prompts:,}{duplicates}"],
            ["requests", f"{self.requests:,}: {self.answered:,} answered already, {sending}"],
            ["prompt tokens", f"about {self.expected_prompt_tokens:,}, at most {self.worst_prompt_tokens:,}"],
            ["completion tokens", tokens],
            ["cost", self._cost()],
            *self._batch_cost(),
            ["spent before", f"{format_usd(self.spent_usd)}{budget}"],
            ["dataset", f"about {decimal(self.expected_bytes)} on disk"],
            ["time", time],
            ["assumption", self.basis],
            *(self.rounds.lines() if self.rounds else []),
        ]

    def _cost(self) -> str:
        if self.expected_usd is None or self.worst_usd is None:
            why = f": {self.why_no_price}" if self.why_no_price else ""
            return f"not known{why} (set teacher.price)"
        return f"about {format_usd(self.expected_usd)}, at most {format_usd(self.worst_usd)}"

    def _batch_cost(self) -> list[list[str]]:
        if self.batch_usd is None or self.worst_batch_usd is None:
            return []
        cost = f"about {format_usd(self.batch_usd)}, at most {format_usd(self.worst_batch_usd)}, within a day"
        return [["by batch jobs", f"{cost} (label.delivery: batch)"]]

    def __str__(self) -> str:
        lines = self.lines()
        width = max(len(name) for name, _ in lines)
        return "\n".join(f"{name:<{width}}  {value}" for name, value in lines)


@dataclass(frozen=True)
class ToSend:
    """Totals over the requests of a plan that have no answer yet."""

    requests: int
    likely_prompt_tokens: int
    worst_prompt_tokens: int


def estimate_labelling(recipe: Recipe, checks: PromptChecks | None = None) -> Estimate:
    """Estimate a recipe's labelling; see the module's docstring. `checks` replaces the recipe's checks of its prompts.

    Raises:
        UsageError: the recipe or the prompts are wrong.
        TeacherUnavailable: the files of a local model are missing.
    """
    teacher = open_teacher(recipe.teacher, recipe.label, recipe.seed)
    check_budget(recipe, teacher)
    folder = dataset_folder(recipe.dataset)
    finished = [open_dataset(folder, number) for number in versions(folder)]
    newest = finished[-1].manifest if finished else None
    carried_usd = (newest.totals.spent_usd if newest and isinstance(folder, RemotePath) else None) or 0.0
    former = former_names(teacher, recipe.label, folder)
    with (
        make_plan(recipe, teacher.identity, former, checks) as plan,
        closing(JournalView(journal_folder(recipe.dataset))) as journal,
    ):
        is_finished = newest is not None and plan.settings_of_version(newest, journal.get_note) is not None
        earlier = [*advised_versions(recipe.dataset), *finished]
        to_send = ToSend(0, 0, 0) if is_finished else _to_send(plan, journal, folder, earlier)
        return estimate_plan(recipe, plan, to_send, newest, teacher, journal.spent() or carried_usd)


def estimate_plan(
    recipe: Recipe, plan: LabelPlan, to_send: ToSend, newest: Manifest | None, teacher: Teacher, spent: float
) -> Estimate:
    """Estimate a plan that has been read; `newest` is the newest version, `spent` the dollars spent so far."""
    label, price = recipe.label, teacher.price
    batch = teacher.batch_price if isinstance(teacher, Batches) else None
    limit = label.sampling.max_tokens if label.mode == "generate" else 0
    mean = _mean_completion(newest)
    each = min(limit, mean) if mean else limit / 2
    count, expected_prompt, worst_prompt = to_send.requests, to_send.likely_prompt_tokens, to_send.worst_prompt_tokens
    return Estimate(
        prompts=plan.prompts,
        duplicate_prompts=plan.duplicate_prompts,
        requests=plan.requests,
        answered=plan.requests - count,
        to_send=count,
        expected_prompt_tokens=expected_prompt,
        worst_prompt_tokens=worst_prompt,
        expected_completion_tokens=round(count * each),
        worst_completion_tokens=count * limit,
        expected_usd=_dollars(price.cost if price else None, count, expected_prompt, each),
        worst_usd=_dollars(price.max_cost if price else None, count, worst_prompt, limit),
        spent_usd=spent,
        budget_usd=label.budget_usd,
        expected_bytes=_bytes(label, plan, newest, each),
        seconds_at_limits=seconds_at_limits(label, count, expected_prompt + count * each),
        basis=f"answers as long as those of {newest.label}"
        if newest and mean
        else "answers half as long as max_tokens",
        why_no_price=why_no_price(teacher),
        batch_usd=_dollars(batch.cost if batch else None, count, expected_prompt, each),
        worst_batch_usd=_dollars(batch.max_cost if batch else None, count, worst_prompt, limit),
    )


def still_to_send(recipe: Recipe, plan: LabelPlan, journal: Journal) -> ToSend:
    """Return what a run holding the dataset still has to send; its journal already contains earlier versions' answers."""
    with closing(JournalView(journal_folder(recipe.dataset))) as view:
        if next(view.ids(), None) is None:
            return _all_requests(plan)
    return _total(request for number in range(plan.shards) for request in _unanswered(plan.shard(number), journal))


def _unanswered(shard: Shard, journal: Journal) -> list[Request]:
    known = journal.answered(shard.ids)
    return [request for request in shard.requests if request.key not in known]


def _to_send(plan: LabelPlan, journal: JournalView, base: Location, finished: list[Dataset]) -> ToSend:
    """Return what has no answer in the journal or a finished version. Known keys are kept on disk, not in memory."""
    names = FormerNames(plan.former, journal.get_note)
    schema = "CREATE TABLE ids (settings TEXT, id TEXT, PRIMARY KEY (settings, id)) WITHOUT ROWID"
    with closing(temporary_database(schema)) as known:

        def store_keys(ids: Iterator[str], valid: Sequence[Former]) -> None:
            """Store each key under every teacher name that is valid for it."""
            allowed = [plan.answer_settings.id, *(one.answer_settings.id for one in valid)]
            known.executemany("INSERT OR IGNORE INTO ids VALUES (?, ?)", ((one, id_) for id_ in ids for one in allowed))

        def has_answer(request: Request) -> bool:
            keys = [(one.id, request.key_under(one)) for one in possible]
            return any(known.execute("SELECT 1 FROM ids WHERE settings = ? AND id = ?", key).fetchone() for key in keys)

        possible = [plan.answer_settings, *(one.answer_settings for one in plan.former)]
        store_keys(journal.ids(), names.valid_for_journal(base))
        for version in finished:
            store_keys(_answered_ids(version), names.valid_for(version.manifest.recipe))
        if not known.execute("SELECT 1 FROM ids LIMIT 1").fetchone():
            return _all_requests(plan)
        return _total(
            request
            for number in range(plan.shards)
            for request in plan.shard(number).requests
            if not has_answer(request)
        )


def _all_requests(plan: LabelPlan) -> ToSend:
    return ToSend(plan.requests, plan.likely_prompt_tokens, plan.worst_prompt_tokens)


def _total(requests: Iterable[Request]) -> ToSend:
    count = likely = worst = 0
    for request in requests:
        count += 1
        likely += likely_prompt_tokens(request)
        worst += most_prompt_tokens(request)
    return ToSend(count, likely, worst)


def _answered_ids(version: Dataset) -> Iterator[str]:
    """Yield the id of every row of a finished version that has an answer, rejected rows included."""
    for entry in version.manifest.files:
        with version.open(entry) as parquet:
            for batch in parquet.iter_batches(columns=["id", "completion"]):
                yield from batch.filter(pc.is_valid(batch.column("completion"))).column("id").to_pylist()


def _mean_completion(newest: Manifest | None) -> float | None:
    if newest is None or not newest.totals.completion_tokens:
        return None
    return newest.totals.completion_tokens / max(1, sum(newest.rows.values()) + sum(newest.rejected.values()))


def _dollars(
    price: Callable[[int, int], float] | None, requests: int, prompt_tokens: float, completion_each: float
) -> float | None:
    """Return the cost from the mean request: calling a price list a million times would dominate the run time."""
    if price is None:
        return None
    return requests * price(math.ceil(prompt_tokens / max(1, requests)), math.ceil(completion_each))


def _bytes(label: LabelSettings, plan: LabelPlan, newest: Manifest | None, each: float) -> int:
    rows = sum(newest.rows.values()) if newest else 0
    if newest is not None and rows:
        return round(plan.requests * sum(file.bytes for file in newest.files) / rows)
    trace_bytes = 0.0
    if label.soft is not None:
        trace_bytes = (
            _TRACE_BYTES + _TOP_K_BYTES * (label.soft.k or 0) + _SAMPLED_BYTES * (label.soft.draws or 0)
        ) * each
    text = (plan.likely_prompt_tokens + plan.requests * each) * _TEXT_BYTES
    return round(plan.requests * (_ROW_BYTES + trace_bytes) + text)


def seconds_at_limits(label: LabelSettings, requests: int, tokens: float) -> float | None:
    """Return how long these requests and tokens take at the rate limits; None if there is none."""
    limits = label.limits
    times = [
        60.0 * amount / limit
        for amount, limit in ((requests, limits.requests_per_minute), (tokens, limits.tokens_per_minute))
        if limit is not None
    ]
    return max(times, default=None)

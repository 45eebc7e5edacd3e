"""Leases: what the parts of a job may spend and send, so that all workers together never pass the recipe's bounds.

    await leases.lend(part, worst_usd)       # durable before the part is handed out
    label = leases.of(part)                  # the settings that it is labelled with
    leases.repay(part, spent_usd)            # when it is done

The budget: what is lent counts as spent, so nothing is ever sent that is not covered, whoever is killed meanwhile. A part
gets the most that it can cost, or its share of what is left; one that has spent its lease waits until another is repaid.
At the end of a budget a worker may be left with less than one request's worst case, which nobody else can spend.

The rate limits: each worker gets an equal share of them, and no more parts than workers are ever out. A share that a slow
worker leaves unused is lost: that is the price of never exceeding a limit.
"""

from __future__ import annotations

import asyncio

from stillhouse.errors import BudgetSpent
from stillhouse.labelling.budget import Budget
from stillhouse.labelling.journal import Journal
from stillhouse.recipe.label import LabelSettings, LimitSettings, RunnerSettings

_DUST = 1e-6  # dollars: what rounding may leave


class Leases:
    """Of one job whose parts are labelled elsewhere; used from one event loop."""

    def __init__(self, label: LabelSettings, budget: Budget, journal: Journal) -> None:
        self._label = label
        self._budget = budget
        self._journal = journal
        self._lent = journal.lent()  # to parts of an earlier run too, which may be at work still
        self._repaid = asyncio.Event()
        self._out = 0  # parts that somebody is at work on, as far as this process knows

    def of(self, part: str) -> LabelSettings:
        """How a part is labelled: with its lease as its budget, and its share of the limits."""
        workers = self._label.runner.workers
        limits = LimitSettings(**{name: limit and limit // workers for name, limit in self._label.limits})
        budget = None if self._label.budget_usd is None else max(self._lent[part], _DUST)  # a budget is never naught
        return self._label.model_copy(
            update={"budget_usd": budget, "limits": limits, "runner": RunnerSettings(), "max_rejected": 1.0}
        )

    async def lend(self, part: str, worst_usd: float, *, more: bool = False) -> None:
        """Let a part spend so much, or its share of what is left, beside what it has; `returned` must follow.

        Args:
            part: its name.
            worst_usd: the most that it can cost.
            more: whether it has spent its lease. Else a lease that it has is left as it is.

        Raises:
            BudgetSpent: nothing is left, and nobody is at work who could leave something.
        """
        usd = worst_usd if more or part not in self._lent else 0.0
        if usd and self._label.budget_usd is not None:
            left = await self._left(self._label.budget_usd, patient=more)
            usd = min(usd, left / (self._label.runner.workers - self._out))
        self._out += 1
        self._lent[part] = self._lent.get(part, 0.0) + usd
        self._journal.lend(part, self._lent[part])
        self._budget.count(usd)

    def returned(self) -> None:
        """Nobody is at work on a part any more, however that went; its lease stays."""
        self._out -= 1
        self._repaid.set()

    def repay(self, part: str, spent_usd: float) -> None:
        """A part is done and in the journal: what it has not spent is free again. A second time changes nothing."""
        if self._journal.repay(part, spent_usd):
            self._budget.count(spent_usd - self._lent.pop(part))
            self._repaid.set()

    async def _left(self, limit: float, *, patient: bool) -> float:
        """What can be lent; who is patient first lets another bring back what it has not spent."""
        while (left := limit - self._budget.spent_usd) <= _DUST or patient:
            if not self._out:
                if left > _DUST:
                    break
                raise BudgetSpent(
                    f"label.budget_usd is {limit:g}: all of it is spent, or set aside for parts that are not done. What "
                    "was answered is kept; raise the budget (--set label.budget_usd=...) to go on."
                )
            self._repaid.clear()
            await self._repaid.wait()
            patient = False
        return left

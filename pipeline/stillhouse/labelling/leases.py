"""Leases: what each part of a job may spend and send, so that all workers together stay within the recipe's limits.

    await leases.lend(part, worst_usd)       # durable before the part is dispatched
    label = leases.settings_for(part)        # the settings to label it with
    leases.repay(part, spent_usd)            # when it is done

Budget: money lent counts as spent, so every request sent is covered, whichever process is killed. A part gets its
worst-case cost, or its share of the remaining budget; one that has used up its lease waits until another part repays.
When the budget is nearly spent, a worker may hold a remainder that is too small for one request; no other worker can use
it.

Rate limits: each worker gets an equal share, and at most `workers` parts are dispatched at a time. A share that a slow
worker does not use is lost: that is the price of never exceeding a limit.
"""

from __future__ import annotations

import asyncio

from stillhouse.labelling.budget import Budget, budget_spent
from stillhouse.labelling.journal import Journal
from stillhouse.recipe.label import LabelSettings, LimitSettings, RunnerSettings

_ROUNDING = 1e-6  # dollars: below this, an amount is rounding error


class Leases:
    """The leases of one job whose parts are labelled elsewhere; use it from one event loop."""

    def __init__(self, label: LabelSettings, budget: Budget, journal: Journal) -> None:
        self._label = label
        self._budget = budget
        self._journal = journal
        self._lent = journal.lent()  # includes parts of an earlier run, which may still be running
        self._repaid = asyncio.Event()
        self._dispatched = 0  # number of parts that this process has dispatched and not got back

    def settings_for(self, part: str) -> LabelSettings:
        """Return the settings for labelling a part: its lease as the budget, and its share of the rate limits."""
        workers = self._label.runner.workers
        limits = LimitSettings(**{name: limit and limit // workers for name, limit in self._label.limits})
        budget = (
            None if self._label.budget_usd is None else max(self._lent[part], _ROUNDING)
        )  # a budget must be positive
        return self._label.model_copy(
            update={"budget_usd": budget, "limits": limits, "runner": RunnerSettings(), "max_rejected": 1.0}
        )

    async def lend(self, part: str, worst_usd: float, *, more: bool = False) -> None:
        """Lend a part its worst-case cost, or its share of the remaining budget; call `release` afterwards.

        Args:
            part: the name of the part.
            worst_usd: the highest cost of the part.
            more: whether the part has used up its lease and needs more. Otherwise an existing lease is left unchanged.

        Raises:
            BudgetSpent: nothing is left to lend, and no dispatched part could return anything.
        """
        usd = worst_usd if more or part not in self._lent else 0.0
        if usd and self._label.budget_usd is not None:
            available = await self._available(self._label.budget_usd, wait=more)
            usd = min(usd, available / (self._label.runner.workers - self._dispatched))
        self._dispatched += 1
        self._lent[part] = self._lent.get(part, 0.0) + usd
        self._journal.lend(part, self._lent[part])
        self._budget.add_spent(usd)

    def release(self) -> None:
        """Record that a part is no longer being worked on, whether it succeeded or failed; its lease stays."""
        self._dispatched -= 1
        self._repaid.set()

    def repay(self, part: str, spent_usd: float) -> None:
        """Free the unspent money of a part that is done and in the journal. Idempotent."""
        if self._journal.repay(part, spent_usd):
            self._budget.add_spent(spent_usd - self._lent.pop(part))
            self._repaid.set()

    async def _available(self, limit: float, *, wait: bool) -> float:
        """Return what can be lent; with `wait`, first wait for another part to return its unspent money."""
        while (available := limit - self._budget.spent_usd) <= _ROUNDING or wait:
            if not self._dispatched:
                if available > _ROUNDING:
                    break
                raise budget_spent(
                    "all of it is spent, or reserved for parts that are not finished; all answers so far are kept",
                    limit,
                )
            self._repaid.clear()
            await self._repaid.wait()
            wait = False
        return available

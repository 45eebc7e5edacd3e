"""The budget: a request is sent only if its worst-case cost fits in what remains.

    reservation = await budget.reserve(worst_usd)     # durable before anything is sent
    ... one attempt ...
    budget.settle(reservation, cost_usd)              # from `usage`; None: not known, the worst case counts

The worst case is the largest possible token count of the prompt plus `max_tokens`, at the model's price. Money that a
killed run had reserved counts as spent, because the answer may have been billed. The amount spent is stored in the journal,
so it counts across resumes, versions and processes.
"""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from dataclasses import dataclass

from stillhouse.errors import BudgetSpent, RecipeError
from stillhouse.labelling.journal import Change, Journal
from stillhouse.labelling.tokens import most_prompt_tokens
from stillhouse.recipe.recipe import Recipe
from stillhouse.teachers.base import Request, Teacher, why_no_price
from stillhouse.teachers.prices import Price

_TOLERANCE_USD = 1e-9  # tolerance, because float sums are not exact


@dataclass(frozen=True)
class Reservation:
    """Dollars reserved for one attempt; `number` identifies it in the journal, None without a budget."""

    worst_usd: float
    number: int | None = None


class Budget:
    """The budget of a run, shared by all its requests; use it from one event loop."""

    def __init__(self, limit: float | None, price: Price | None, journal: Journal) -> None:
        self._limit = limit
        self._price = price
        self._journal = journal
        self._spent = journal.spent() + sum(journal.lent().values())
        self._reserved = 0.0
        self._open = 0  # reservations not yet settled
        self._last_number = 0
        self._changed = asyncio.Event()

    @property
    def limit_usd(self) -> float | None:
        """The limit, `label.budget_usd`."""
        return self._limit

    @property
    def spent_usd(self) -> float:
        """Dollars spent on this dataset, failed attempts included."""
        return self._spent

    def add_spent(self, spent_usd: float) -> None:
        """Add an amount that the journal already contains: dollars lent to a part, or (negative) dollars it returned."""
        self._spent += spent_usd

    async def reserve(self, requests: Sequence[Request], max_tokens: int) -> Reservation:
        """Reserve the worst-case cost of these requests, durably; wait for other attempts to settle if the budget needs it.

        Raises:
            BudgetSpent: no attempt is in flight, and these requests could still exceed the budget.
        """
        worst_usd = self.worst_usd(requests, max_tokens)
        if self._limit is None:
            return Reservation(worst_usd)
        while self._spent + self._reserved + worst_usd > self._limit + _TOLERANCE_USD:
            if not self._open:
                raise budget_spent(
                    f"${self._spent:.4g} have been spent, and the next request could cost ${worst_usd:.4g}; all answers so "
                    "far are kept",
                    self._limit,
                )
            self._changed.clear()
            await self._changed.wait()
        self._reserved += worst_usd
        self._open += 1
        self._last_number += 1
        number = self._last_number
        reservation = Reservation(worst_usd, number)
        try:
            await self._journal.commit(Change(reserve=(number, worst_usd)))
        except BaseException:
            self._release(reservation)
            self._journal.commit_soon(Change(settle=number))
            raise
        return reservation

    def settle(self, reservation: Reservation, cost_usd: float | None) -> Change:
        """Turn a reservation into spending; commit the returned change together with the answer."""
        spent = reservation.worst_usd if cost_usd is None else cost_usd
        self._spent += spent
        self._release(reservation)
        return Change(settle=reservation.number, spent_usd=spent)

    def worst_usd(self, requests: Sequence[Request], max_tokens: int) -> float:
        """Return the highest cost of one attempt at each of these requests; 0 if the price is not known."""
        if self._price is None:
            return 0.0
        return sum(
            self._price.max_cost(most_prompt_tokens(request), max_tokens if request.forced is None else 0)
            for request in requests
        )

    def _release(self, reservation: Reservation) -> None:
        if reservation.number is not None:
            self._open -= 1
            self._reserved = self._reserved - reservation.worst_usd if self._open else 0.0  # drop rounding errors
            self._changed.set()


def check_budget(recipe: Recipe, teacher: Teacher) -> None:
    """Refuse a budget that cannot be enforced.

    Raises:
        RecipeError: a budget is set and the teacher's price is not known.
    """
    if recipe.label.budget_usd is not None and teacher.price is None:
        why = why_no_price(teacher)
        raise RecipeError(
            f"the price of {recipe.teacher.model!r} is not known{f' ({why})' if why else ''}, so it cannot be enforced",
            setting="label.budget_usd",
            value=recipe.label.budget_usd,
            fix="set teacher.price to {input_usd_per_million: ..., output_usd_per_million: ...}, or label.budget_usd to "
            "null",
        )


def budget_spent(problem: str, limit_usd: float) -> BudgetSpent:
    """Return the error that nothing more fits in `label.budget_usd`."""
    return BudgetSpent(
        problem,
        setting="label.budget_usd",
        value=limit_usd,
        fix="raise it (--set label.budget_usd=...) and run again",
    )

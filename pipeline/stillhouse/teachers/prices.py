"""A teacher's price: dollars for tokens.

    >>> teacher = TeacherSettings(kind="openai", model="gpt-4o-mini")
    >>> price = find_price(teacher, base_url="https://api.openai.com/v1")
    >>> f"${price.cost(prompt_tokens=1200, completion_tokens=80):.6f}"
    '$0.000228'

Prices come from the recipe (`teacher.price`), or from the snapshot that the library `genai-prices` ships: nothing is
downloaded. A price that is not known is None, never 0.
"""

from __future__ import annotations

from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from functools import cached_property
from typing import TYPE_CHECKING, Protocol
from urllib.parse import urlsplit

from stillhouse.recipe.teacher import TeacherSettings

if TYPE_CHECKING:
    from genai_prices.types import ModelInfo, ModelPrice

_NOT_REPORTED = ("output_reasoning_mtok", "output_citation_mtok")  # charges for tokens that usage does not separate


class Price(Protocol):
    """Converts token counts to dollars."""

    def cost(
        self, prompt_tokens: int, completion_tokens: int, cached_tokens: int = 0, written_tokens: int = 0
    ) -> float:
        """Return the cost of one answer in dollars.

        Args:
            prompt_tokens: all prompt tokens, including cached and written ones.
            completion_tokens: all generated tokens, including reasoning.
            cached_tokens: prompt tokens read from the server's cache.
            written_tokens: prompt tokens written to the server's cache.
        """

    def max_cost(self, prompt_tokens: int, completion_tokens: int) -> float:
        """Return the highest cost of one answer within the next day, for any cache state and any hour."""


@dataclass(frozen=True)
class FlatPrice:
    """One price per prompt token and one per completion token, in dollars."""

    prompt: float
    completion: float

    def cost(
        self, prompt_tokens: int, completion_tokens: int, cached_tokens: int = 0, written_tokens: int = 0
    ) -> float:
        return prompt_tokens * self.prompt + completion_tokens * self.completion

    def max_cost(self, prompt_tokens: int, completion_tokens: int) -> float:
        return self.cost(prompt_tokens, completion_tokens)


FREE = FlatPrice(0.0, 0.0)  # the price of a model in this process


@dataclass(frozen=True)
class SharedPrice:
    """A share of another price, such as half of it for an answer of a batch job."""

    whole: Price
    share: float

    def cost(
        self, prompt_tokens: int, completion_tokens: int, cached_tokens: int = 0, written_tokens: int = 0
    ) -> float:
        return self.share * self.whole.cost(prompt_tokens, completion_tokens, cached_tokens, written_tokens)

    def max_cost(self, prompt_tokens: int, completion_tokens: int) -> float:
        return self.share * self.whole.max_cost(prompt_tokens, completion_tokens)


@dataclass(frozen=True)
class ListedPrice:
    """A price from the library's snapshot, with its tiers, times of day, and rates for cached and cache-written tokens."""

    model: ModelInfo

    def cost(
        self, prompt_tokens: int, completion_tokens: int, cached_tokens: int = 0, written_tokens: int = 0
    ) -> float:
        prices = self.model.get_prices(datetime.now(UTC))
        return _cost_usd(prices, prompt_tokens, completion_tokens, cached_tokens, written_tokens)

    def max_cost(self, prompt_tokens: int, completion_tokens: int) -> float:
        return max(
            _cost_usd(prices, prompt_tokens, completion_tokens, 0, written)
            for prices in self._coming_day
            for written in ([0] if prices.cache_write_mtok is None else [0, prompt_tokens])
        )

    @cached_property
    def _coming_day(self) -> list[ModelPrice]:
        """Every price that applies within the next 24 hours: a run may start at a low price and continue at a high one."""
        now = datetime.now(UTC)
        found: list[ModelPrice] = []
        for prices in (self.model.get_prices(now + timedelta(hours=hour)) for hour in range(25)):
            if prices not in found:
                found.append(prices)
        return found


def find_price(settings: TeacherSettings, base_url: str) -> Price | None:
    """Return the price of a recipe's teacher: from the recipe, else from the library, else None."""
    if settings.price is not None:
        return FlatPrice(settings.price.input_usd_per_million / 1e6, settings.price.output_usd_per_million / 1e6)
    from genai_prices import Usage, calc_price

    try:
        found = calc_price(Usage(input_tokens=1, output_tokens=1), settings.model, provider_api_url=base_url)
    except LookupError:
        return None
    prices = found.model_price
    if prices.input_mtok is None or prices.output_mtok is None or any(getattr(prices, name) for name in _NOT_REPORTED):
        return None  # the model is listed, but not priced by text tokens alone
    return ListedPrice(found.model)


def why_no_price(settings: TeacherSettings, base_url: str) -> str:
    """Explain, for messages, why `find_price` found no price: the host or the model is not in the list."""
    from genai_prices.data_snapshot import get_snapshot

    host = urlsplit(base_url).hostname or base_url
    prices = get_snapshot()
    try:
        prices.find_provider(None, None, base_url)
    except LookupError:
        return f"{_other_provider_clause(settings.model)}requests go to {host}, which is in no price list"
    try:
        provider, _ = prices.find_provider_model(settings.model, None, None, base_url)
    except LookupError:
        return f"the price list of genai-prices does not have this model at {host}"
    return (
        f"{provider.name} does not charge for {settings.model!r} by text tokens alone, or the price list has no price"
    )


def _other_provider_clause(model: str) -> str:
    """Return a clause that the list has the model at another provider; empty if it has not."""
    from genai_prices import Usage, calc_price

    try:
        found = calc_price(Usage(input_tokens=1, output_tokens=1), model)
    except LookupError:
        return ""
    return f"the price list has it at {found.provider.name}, but "


def _cost_usd(prices: ModelPrice, prompt: int, completion: int, cached: int, written: int) -> float:
    from genai_prices import Usage

    cached = min(cached, prompt)  # some servers report more
    usage = Usage(
        input_tokens=prompt,
        output_tokens=completion,
        cache_read_tokens=cached,
        cache_write_tokens=min(written, prompt - cached),
    )
    return float(prices.calc_price(usage)["total_price"])

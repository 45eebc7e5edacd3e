"""What a teacher charges: dollars for tokens.

    price = find_price(recipe.teacher, base_url="https://api.openai.com/v1")
    price.cost(prompt_tokens=1200, completion_tokens=80)        # dollars

Prices come from the recipe (`teacher.price`), or from the snapshot that the library `genai-prices` ships: nothing is
fetched. A price that is not known is None, never 0.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Protocol

from pipeline.config import TeacherSettings

if TYPE_CHECKING:
    from genai_prices.types import ModelPrice


class Price(Protocol):
    """Dollars for tokens."""

    def cost(self, prompt_tokens: int, completion_tokens: int, cached_tokens: int = 0) -> float:
        """Dollars of one answer; `cached_tokens` are those of the prompt that the server had in its cache."""


@dataclass(frozen=True)
class Flat:
    """The same price for every token of a side, in dollars a token."""

    prompt: float
    completion: float

    def cost(self, prompt_tokens: int, completion_tokens: int, cached_tokens: int = 0) -> float:
        return prompt_tokens * self.prompt + completion_tokens * self.completion


FREE = Flat(0.0, 0.0)  # a model in this process


@dataclass(frozen=True)
class Listed:
    """A price of the library's snapshot, with its tiers and its cheaper cached tokens."""

    prices: ModelPrice

    def cost(self, prompt_tokens: int, completion_tokens: int, cached_tokens: int = 0) -> float:
        from genai_prices import Usage

        usage = Usage(input_tokens=prompt_tokens, output_tokens=completion_tokens, cache_read_tokens=cached_tokens)
        return float(self.prices.calc_price(usage)["total_price"])


def find_price(settings: TeacherSettings, base_url: str) -> Price | None:
    """The price of a recipe's teacher: its own `price`, else the library's, else None."""
    if settings.price is not None:
        return Flat(settings.price.input_usd_per_million / 1e6, settings.price.output_usd_per_million / 1e6)
    from datetime import UTC, datetime

    from genai_prices import Usage, calc_price

    try:
        found = calc_price(Usage(input_tokens=1, output_tokens=1), settings.model, provider_api_url=base_url)
    except LookupError:
        return None
    return Listed(found.model.get_prices(datetime.now(UTC)))

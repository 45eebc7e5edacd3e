"""Prices: the recipe's own, the library's, or unknown; and the worst that they can come to."""

import socket
import sys
from datetime import UTC, datetime, timedelta
from typing import Any

import pytest
from genai_prices import Usage, calc_price
from genai_prices.data_snapshot import get_snapshot
from genai_prices.types import ModelInfo
from hypothesis import given
from hypothesis import strategies as st

from stillhouse.errors import RecipeError
from stillhouse.labelling.estimate import estimate_labelling
from stillhouse.recipe.teacher import TeacherSettings
from stillhouse.teachers.prices import FREE, FlatPrice, ListedPrice, Price, find_price, why_no_price
from tests.conftest import MakeRecipe

PRICE = {"input_usd_per_million": 1.0, "output_usd_per_million": 2.0}
OPENAI = "https://api.openai.com/v1"
tokens = st.integers(min_value=0, max_value=2_000_000)


def priced(model: str, url: str = OPENAI, **settings: Any) -> Price | None:
    return find_price(TeacherSettings.model_validate({"kind": "openai", "model": model, **settings}), url)


def listed_model(provider: str, model: str) -> ModelInfo:
    return get_snapshot().find_provider_model(model, None, provider, None)[1]


def test_the_recipe_s_price_stands_before_the_library_s_and_is_the_same_for_every_token() -> None:
    price = priced("gpt-4o-mini", price={"input_usd_per_million": 2.0, "output_usd_per_million": 8.0})
    assert price == FlatPrice(2e-6, 8e-6)
    assert price.cost(1000, 100) == price.cost(1000, 100, cached_tokens=900) == price.max_cost(1000, 100)
    assert price.cost(1_000_000, 1_000_000) == pytest.approx(10.0)


def test_a_recipe_s_price_needs_no_library(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "genai_prices", None)
    assert priced("anything", price={"input_usd_per_million": 0, "output_usd_per_million": 0}) == FREE


@given(prompt=tokens, completion=tokens, cached=tokens)
def test_a_listed_price_is_the_library_s(prompt: int, completion: int, cached: int) -> None:
    price = priced("gpt-4o-mini")
    assert price is not None
    cached = min(cached, prompt)
    usage = Usage(input_tokens=prompt, output_tokens=completion, cache_read_tokens=cached)
    expected = calc_price(usage, "gpt-4o-mini", provider_api_url=OPENAI).total_price
    assert price.cost(prompt, completion, cached) == float(expected)


def test_what_gpt_4o_mini_cost_when_this_was_written() -> None:
    price = priced("gpt-4o-mini")
    assert price is not None
    assert price.cost(1_000_000, 0) == 0.15
    assert price.cost(0, 1_000_000) == 0.60
    assert price.cost(1_000_000, 0, cached_tokens=1_000_000) == 0.075


@pytest.mark.parametrize(
    ("model", "url"),
    [
        ("gpt-99-nonsense", OPENAI),
        ("gpt-4o-mini", "http://127.0.0.1:8000/v1"),  # whoever serves it there, it is not OpenAI at OpenAI's price
        ("text-embedding-3-small", OPENAI),  # listed, without a price of what it writes
        ("whisper-large-v3", "https://api.groq.com/openai/v1"),  # by the hour
        ("gpt-4o", "https://api.githubcopilot.com"),  # listed, without any price
        ("sonar-deep-research", "https://api.perplexity.ai"),  # reasoning has a price that usage does not tell apart
    ],
)
def test_what_is_not_known_is_none_and_never_free(model: str, url: str) -> None:
    assert priced(model, url) is None


@pytest.mark.parametrize(
    ("model", "url", "words"),
    [
        ("gpt-4o-mini", "http://127.0.0.1:8000/v1", "the price list has it at OpenAI, but requests go to 127.0.0.1,"),
        (
            "claude-3-5-haiku-latest",
            "http://[::1]:8000/v1",
            "the price list has it at Anthropic, but requests go to ::1,",
        ),
        ("my-own", "http://gpu-7.local:8000/v1", "requests go to gpu-7.local, which is in no price list"),
        ("gpt-99-nonsense", OPENAI, "does not have this model at api.openai.com"),
        (
            "whisper-large-v3",
            "https://api.groq.com/openai/v1",
            "does not charge for 'whisper-large-v3' by text tokens",
        ),
    ],
)
def test_the_reason_is_told_where_a_price_is_not_known(model: str, url: str, words: str) -> None:
    settings = TeacherSettings.model_validate({"kind": "openai", "model": model})
    assert find_price(settings, url) is None
    assert words in why_no_price(settings, url)


def test_plan_and_a_refused_budget_tell_the_reason(api_recipe: MakeRecipe) -> None:
    recipe = api_recipe("http://127.0.0.1:9/v1", ["one"])
    recipe = recipe.model_copy(update={"teacher": recipe.teacher.model_copy(update={"model": "gpt-4o-mini"})})
    estimate = estimate_labelling(recipe)
    reason = "the price list has it at OpenAI, but requests go to 127.0.0.1, which is in no price list"
    assert (estimate.expected_usd, estimate.why_no_price) == (None, reason)
    assert ["cost", f"not known: {reason} (set teacher.price)"] in estimate.lines()
    limited = recipe.model_copy(update={"label": recipe.label.model_copy(update={"budget_usd": 1.0})})
    with pytest.raises(RecipeError, match=f"is not known \\({reason}\\).*Set teacher.price to {{input_usd"):
        estimate_labelling(limited)
    priced = recipe.model_copy(
        update={"teacher": TeacherSettings.model_validate(recipe.teacher.model_dump() | {"price": PRICE})}
    )
    assert estimate_labelling(priced).why_no_price == ""


def test_more_cached_tokens_than_tokens_are_a_server_s_error_and_not_ours() -> None:
    price = priced("gpt-4o-mini")
    assert price is not None
    assert price.cost(10, 5, cached_tokens=99) == price.cost(10, 5, cached_tokens=10)


def test_a_fee_for_every_request_is_part_of_the_price() -> None:
    price = priced("sonar", "https://api.perplexity.ai")
    assert price is not None
    assert price.cost(0, 0) > 0
    assert price.max_cost(100, 100) >= price.cost(100, 100) > price.cost(0, 0)


@pytest.mark.parametrize(
    ("provider", "model"),
    [("openai", "gpt-4o-mini"), ("openai", "gpt-6-sol"), ("google", "gemini-2.5-pro"), ("deepseek", "deepseek-chat")],
)
@given(prompt=tokens, completion=tokens, cached=tokens, written=tokens, minutes=st.integers(0, 24 * 60), data=st.data())
def test_no_answer_costs_more_than_the_worst(
    provider: str,
    model: str,
    prompt: int,
    completion: int,
    cached: int,
    written: int,
    minutes: int,
    data: st.DataObject,
) -> None:
    """Fewer tokens than the most, a cache that reads or writes them, at any minute of the coming day."""
    listed = listed_model(provider, model)
    most = ListedPrice(listed).max_cost(prompt, completion)
    used = data.draw(st.integers(0, prompt))
    cached = min(cached, used)
    usage = Usage(
        input_tokens=used,
        output_tokens=data.draw(st.integers(0, completion)),
        cache_read_tokens=cached,
        cache_write_tokens=min(written, used - cached),
    )
    later = datetime.now(UTC) + timedelta(minutes=minutes)
    assert float(listed.get_prices(later).calc_price(usage)["total_price"]) <= most * (1 + 1e-12)


def test_writing_into_a_cache_is_dearer_where_the_list_says_so() -> None:
    price = ListedPrice(listed_model("openai", "gpt-6-sol"))
    assert price.cost(1000, 0, written_tokens=1000) > price.cost(1000, 0) > price.cost(1000, 0, cached_tokens=1000)
    plain = ListedPrice(listed_model("openai", "gpt-4o-mini"))
    assert plain.cost(1000, 0, written_tokens=1000) == plain.cost(1000, 0)


def test_nothing_is_fetched(monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*_: object) -> None:
        raise AssertionError("a price was looked for on the network")

    monkeypatch.setattr(socket.socket, "connect", refuse)
    price = priced("gpt-4o-mini")
    assert price is not None and price.cost(10, 10) > 0
    assert priced("nobody-knows-it") is None

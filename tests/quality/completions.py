"""Completions for the tests of filters, and a shorthand for asking them."""

from stillhouse.quality.base import NamedFilter, open_filters
from stillhouse.recipe.quality import FilterSettings
from stillhouse.records import Completion, FinishReason, Message, Prompt, content_hash


def completion(
    text: str = "Fine.",
    *,
    question: str = "q",
    sample: int = 0,
    reference: str | None = None,
    tokens: int | None = 5,
    finish_reason: FinishReason = "stop",
    id_: str | None = None,
) -> Completion:
    """A completion whose id is made of its question and its sample, as a request's key is."""
    prompt = Prompt((Message("system", "Be brief."), Message("user", question)), reference)
    return Completion(
        id=id_ or content_hash([question, sample]),
        prompt=prompt,
        sample=sample,
        text=text,
        finish_reason=finish_reason,
        prompt_tokens=3,
        completion_tokens=tokens,
        teacher="t",
        created_at="now",
    )


def filters(*settings: dict[str, object]) -> list[NamedFilter]:
    """The filters of a recipe's `quality` list."""
    return open_filters([FilterSettings.model_validate(one) for one in settings])

"""Estimate how many tokens a request takes, before the teacher counts them."""

from __future__ import annotations

from stillhouse.recipe.label import LabelSettings
from stillhouse.teachers.base import Request

_MESSAGE_TOKENS = 16  # most tokens that a chat template adds per message
_TEMPLATE_TOKENS = 256  # most tokens that it adds once: a default system prompt
_BYTES_A_TOKEN = 4  # bytes of text per token, as a rule of thumb


def most_prompt_tokens(request: Request) -> int:
    """Return an upper bound: a token of any byte-level or SentencePiece tokenizer covers at least one byte."""
    messages = sum(len(message.content.encode()) + _MESSAGE_TOKENS for message in request.prompt.messages)
    wanted = request.answer_settings.response_format
    return messages + _TEMPLATE_TOKENS + request.forced_bytes + (len(repr(wanted)) if wanted else 0)


def likely_prompt_tokens(request: Request) -> int:
    """Estimate the number of tokens in the prompt."""
    return sum(len(message.content.encode()) for message in request.prompt.messages) // _BYTES_A_TOKEN + 1


def likely_tokens(request: Request, label: LabelSettings) -> int:
    """Estimate the tokens that a server counts against its limit: the prompt's plus the longest possible answer."""
    return likely_prompt_tokens(request) + (label.sampling.max_tokens if request.forced is None else 0)

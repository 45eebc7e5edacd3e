"""How many tokens a request can take, before its teacher has counted them."""

from __future__ import annotations

from stillhouse.recipe.label import LabelSettings
from stillhouse.teachers.base import Request

_MESSAGE_TOKENS = 16  # what a chat template puts around one message, at the most
_TEMPLATE_TOKENS = 256  # what it puts before them all: a system prompt of its own
_BYTES_A_TOKEN = 4  # of text, as a rule of thumb


def most_prompt_tokens(request: Request) -> int:
    """An upper bound: a token of any byte-level or sentence-piece tokenizer covers one byte or more."""
    messages = sum(len(message.content.encode()) + _MESSAGE_TOKENS for message in request.prompt.messages)
    wanted = request.terms.response_format
    return messages + _TEMPLATE_TOKENS + len((request.forced or "").encode()) + (len(repr(wanted)) if wanted else 0)


def likely_prompt_tokens(request: Request) -> int:
    """About how many tokens the prompt has."""
    return sum(len(message.content.encode()) for message in request.prompt.messages) // _BYTES_A_TOKEN + 1


def likely_tokens(request: Request, label: LabelSettings) -> int:
    """About how many tokens a server counts against its limit: the prompt's, and all that the answer may have."""
    return likely_prompt_tokens(request) + (0 if request.forced else label.sampling.max_tokens)

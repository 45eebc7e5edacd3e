"""Reject completions in which the teacher declines: "I'm sorry, but I can't help with that", "As an AI model, I ...".

- {kind: refusal}
- {kind: refusal, within: 400, patterns: ["outside (of )?my (area|expertise)"]}

Only the first `within` characters are checked: a sentence in them must begin like an English refusal, or one of `patterns`
must match anywhere in them. "I can't recommend this book enough" is not a refusal, and neither is a story in which somebody
refuses later in the text.
"""

from __future__ import annotations

import re
from typing import Any

from pydantic import Field

from stillhouse.quality.base import Filter
from stillhouse.records import Completion
from stillhouse.settings import Settings, parse_options
from stillhouse.text import short_quote

_SENTENCES = re.compile(r"(?<=[.!?:\n])\s+")
_OPENING = re.compile(  # "I'm sorry, but", "Unfortunately,", quotes and Markdown marks: skipped before a refusal
    r"[\W_]*(?:(?:oh|well|hi|hello|no|but|however|unfortunately|sadly|regrettably|sorry|my apologies|apologies"
    r"|i(?:'m| am) (?:\w+ )?(?:sorry|afraid)|i (?:\w+ )?(?:apologi[sz]e|regret)|thank you)\b"
    r"(?: for [^,.!?\n]{1,60}| to say)?(?: that\b)?[\s,.;:!–—-]*)*+",
    re.IGNORECASE,
)
_AI = (
    r"an? (?:ai|artificial intelligence|(?:ai |large )?language model)(?: language)?"
    r"(?: model| assistant| system| chatbot)?(?= i\b|,| (?:and|developed|created|trained|made|designed)\b)"
)
_CANNOT = (
    r"i(?: really| simply| just)? ?(?:can(?:not|'t| not)|will not|won't"
    r"|(?:am|'m) (?:\w+ )?(?:unable to|not (?:able|allowed|permitted|programmed|designed) to)|must decline to)"
    r"(?: \w+ly| in good conscience)?"
)
_THAT = r"(?:(?:you|to|with|in|on|about|of|for) ){0,2}(?:that|this|such|your (?:request|question|prompt)|these|those)\b"
_KINDS = r"(?:advice|information|instructions?|guidance|assistance|content|details|opinions?|help|access)\b"
_REFUSALS = (
    rf"(?:as|being) {_AI}[^.!?\n]{{0,60}}\b(?:i|my)\b",
    rf"i(?:'m| am) (?:just |only |merely |simply )?{_AI}[^.!?\n]{{0,60}}(?:\bcannot|n't|\bnot|\bunable)\b",
    rf"{_CANNOT} (?:help|assist)(?: you| out)*(?: with\b|[.,;!]|$)",
    rf"{_CANNOT} (?:comply|assist|fulfill?|accommodate)\b",
    rf"{_CANNOT} do (?:that|this)(?: for you)?(?:[.,;!]|$)",
    rf"{_CANNOT} (?:help|answer|continue|engage|participate|discuss|support|complete|respond|process) {_THAT}",
    rf"{_CANNOT} (?:provide|give|offer|share|generate|create|write|produce|discuss) [^.!?\n]{{0,60}}?{_KINDS}",
    rf"{_CANNOT} (?:provide|give|offer|share|generate|create|write|produce) {_THAT}",
    r"i (?:must|have to|will have to|respectfully) (?:\w+ly )?(?:decline|refuse)\b",
    r"i(?:'m| am) not comfortable \w+ing\b",
    r"i (?:don't|do not) (?:feel comfortable \w+ing\b|have the (?:ability|capability) to\b)",
    r"(?:that|this|it)(?:'s| is) not something (?:that )?i(?:'m able to| am able to| can) (?:help|assist|do)\b",
    r"(?:that|this|it)(?:'s| is) something (?:that )?i (?:can't|cannot) (?:help|assist|do)\b",
    r"(?:it|this|that)(?:'s| is| goes)? against my (?:programming|guidelines|principles|policy|policies)\b",
    r"(?:that|this|your) (?:request|question|prompt) (?:violates|goes against)\b",
    r"it(?:'s| is| would be) (?:not appropriate|inappropriate|not ethical|unethical) for me to\b",
)
_REFUSAL = re.compile("|".join(_REFUSALS), re.IGNORECASE)
_STRAIGHT = str.maketrans({"’": "'", "‘": "'", "ʼ": "'", "`": "'"})


class RefusalOptions(Settings):
    """Options of this filter."""

    patterns: tuple[re.Pattern[str], ...] = Field(
        default=(), description="more refusal patterns, ignoring case; write straight apostrophes"
    )
    within: int = Field(default=200, ge=1, description="characters to check, from the start")


def open_filter(options: dict[str, Any]) -> Filter:
    """Build the filter, see the module's docstring."""
    given = parse_options("quality.refusal", options, RefusalOptions)
    patterns = [re.compile(one.pattern, one.flags | re.IGNORECASE) for one in given.patterns]

    def check(completion: Completion) -> str | None:
        beginning = completion.text.strip()[: given.within].translate(_STRAIGHT)
        declines = (_REFUSAL.match(_OPENING.sub("", one, count=1)) for one in _SENTENCES.split(beginning))
        found = next(filter(None, (*declines, *(one.search(beginning) for one in patterns))), None)
        return f"it declines: {short_quote(found.group().strip())}" if found else None

    return check

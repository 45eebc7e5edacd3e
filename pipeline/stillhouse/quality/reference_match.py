r"""Reject completions that disagree with their prompt's reference.

- {kind: reference-match, how: exact}                # the same words
- {kind: reference-match, how: contains}             # the text contains the reference's words, consecutively
- {kind: reference-match, how: number}               # the same last number; "#### 42" and \boxed{42} take precedence
- {kind: reference-match, how: f1, threshold: 0.5}   # F1 over words

Case, white space, quotes and punctuation are ignored; `1,000`, `$1000.00` and `2000/2` are the same number.
"""

from __future__ import annotations

import re
from collections.abc import Callable
from fractions import Fraction
from typing import Any, Literal

from pydantic import Field, model_validator

from stillhouse.quality.base import Filter
from stillhouse.records import Completion
from stillhouse.settings import Settings, parse_options
from stillhouse.text import short_quote, token_f1, words

_DIGITS = r"(?:\d{1,3}(?:,\d{2,3})*,\d{3}(?!\d)|\d{1,1000}(?!\d))(?:\.\d{1,1000}(?!\d))?|\.\d{1,1000}(?!\d)"
_AMOUNT = rf"(-?)(?:\\?[$€£¥₹]\s?)?(-?)({_DIGITS})(?:\s?/\s?({_DIGITS}))?"
_NUMBER = re.compile(rf"(?<![\w^]){_AMOUNT}")
_MARKED = re.compile(r"\\boxed\s*\{((?:[^{}]|\{[^{}]*\})*)\}|####[ \t]*([-\d$€£][^\s]*)[ \t]*$", re.MULTILINE)
_LATEX_FRACTION = re.compile(r"\\[dt]?frac\s*\{([^{}]*)\}\s*\{([^{}]*)\}")


class ReferenceMatchOptions(Settings):
    """Options of this filter."""

    how: Literal["exact", "contains", "number", "f1"] = Field(description="how completion and reference are compared")
    threshold: float = Field(default=0.5, ge=0, le=1, description="for f1: completions below it are rejected")
    without_reference: Literal["keep", "reject"] = Field(
        default="keep", description="with `number`, also for a reference without a number"
    )

    @model_validator(mode="after")
    def _threshold_needs_f1(self) -> ReferenceMatchOptions:
        if "threshold" in self.model_fields_set and self.how != "f1":
            raise ValueError(f"threshold is only for `how: f1`, and how is {self.how!r}: remove threshold")
        return self


def open_filter(options: dict[str, Any]) -> Filter:
    """Build the filter, see the module's docstring."""
    given = parse_options("quality.reference-match", options, ReferenceMatchOptions)
    agrees: dict[str, Callable[[str, str], bool]] = {
        "exact": lambda text, reference: words(text) == words(reference),
        "contains": lambda text, reference: _padded_words(reference) in _padded_words(text),
        "number": lambda text, reference: last_number(text) == last_number(reference),
        "f1": lambda text, reference: token_f1(text, reference) >= given.threshold,
    }

    def check(completion: Completion) -> str | None:
        text, reference = completion.text, completion.prompt.reference
        if reference is None or (given.how == "number" and last_number(reference) is None):
            return "the prompt has no reference to compare with" if given.without_reference == "reject" else None
        if agrees[given.how](text, reference):
            return None
        return f"{short_quote(text[-200:])} disagrees with the reference {short_quote(reference[-200:])} ({given.how})"

    return check


def last_number(text: str) -> Fraction | None:
    """Return the last number of a text: preferably the last in \\boxed{} or after ####; None without a number."""
    plain = text.replace("−", "-").replace(r"\,", "").replace("{,}", ",")
    plain = _LATEX_FRACTION.sub(r"\1/\2", plain)
    for place in [*reversed(_MARKED.findall(plain)), (plain, "")]:
        if found := _NUMBER.findall("".join(place)):
            before, after, digits, divisor = found[-1]
            value = Fraction(digits.replace(",", "")) / (Fraction(divisor.replace(",", "") or 1) or 1)
            return -value if before or after else value
    return None


def _padded_words(text: str) -> str:
    return f" {' '.join(words(text))} "

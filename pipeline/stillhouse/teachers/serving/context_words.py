"""The messages by which servers report that a prompt, plus room for its answer, exceeds the model's context window.

    >>> bool(TOO_LONG.search("This model's maximum context length is 4096 tokens. However, you requested 5000 tokens."))
    True

There is no common code: each server has its own message (tests/teachers/serving/test_context_words.py lists them by
server). A limit that every prompt exceeds, such as a `max_tokens` larger than the model allows, does not match.
"""

from __future__ import annotations

import re

TOO_LONG = re.compile(
    r"context.?(?:length|size|window|limit|overflow)|maximum context|too long|too many (?:input |prompt )?tokens"
    r"|(?:maximum|maximum allowed|max) (?:model |prompt |input |sequence )?length|max_(?:model|seq|input)_len"
    r"|reduce (?:the length|the size|your prompt|your message)|string_above_max_length|expected maxlength"
    r"|input token count|range of input length|token limit|maximum number of (?:input )?tokens"
    r"|(?:input|prompt)s?`? (?:tokens|length) (?:exceeds?|\+)|inputs`? must have less than|cannot exceed \d+ tokens"
    r"|(?:request|prompt|input|message|payload|entity|body).{0,20} too large|too large for (?:the )?model"
    r"|(?:request|prompt|input).{0,60}(?:longer|larger|greater|more) than.{0,60}(?:length|limit|tokens)",
    re.I,
)
TOO_LONG_CODE = re.compile(r"exceed_context_size_error|context_length_exceeded")  # trusted even with status 500

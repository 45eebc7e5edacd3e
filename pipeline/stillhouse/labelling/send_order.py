"""The order in which a shard's requests are sent.

Long requests go first, so that no long request starts when all others are done; and requests that share a prefix go
together, so that a server with a prefix cache (vLLM has one) still has its keys and values.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from stillhouse.teachers.base import Request


def order_requests(requests: Sequence[Request], *, batched: bool) -> list[Request]:
    """Return the requests in the order to send them.

    Args:
        requests: the requests of one shard.
        batched: whether several requests go to the teacher in one call, padded to the longest; then only length counts.
    """
    by_length = sorted(requests, key=lambda request: len(_text(request)), reverse=True)
    if batched:
        return by_length
    groups = [
        sorted(group, key=lambda request: len(_text(request)), reverse=True) for group in _prefix_groups(by_length)
    ]
    groups.sort(key=lambda group: len(_text(group[0])), reverse=True)
    return [request for group in groups for request in group]


def _prefix_groups(requests: Sequence[Request]) -> Iterator[list[Request]]:
    """Yield groups of requests in which neighbours share a prefix of at least half the shorter text."""
    group: list[Request] = []
    for request in sorted(requests, key=_text):
        if group and not _share_prefix(_text(group[-1]), _text(request)):
            yield group
            group = []
        group.append(request)
    if group:
        yield group


def _share_prefix(one: str, other: str) -> bool:
    half = (min(len(one), len(other)) + 1) // 2
    return one[:half] == other[:half]


def _text(request: Request) -> str:
    """Return the text that the teacher reads; its characters stand in for tokens."""
    forced = request.forced if isinstance(request.forced, str) else " " * request.forced_bytes
    return "\n".join([*(message.content for message in request.prompt.messages), forced])

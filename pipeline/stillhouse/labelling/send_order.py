"""The order in which a shard's requests are sent.

What takes longest goes first, so that nothing long is begun when all else is done; and requests that begin alike go
together, so that a server which keeps the keys and values of a prefix (vLLM does) still has them.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from stillhouse.teachers.base import Request


def in_order(requests: Sequence[Request], *, batched: bool) -> list[Request]:
    """The requests in the order to send them.

    Args:
        requests: of one shard.
        batched: several go to the teacher in one call, padded to the longest: then length alone decides.
    """
    by_length = sorted(requests, key=lambda request: len(_text(request)), reverse=True)
    if batched:
        return by_length
    groups = [sorted(group, key=lambda request: len(_text(request)), reverse=True) for group in _alike(by_length)]
    groups.sort(key=lambda group: len(_text(group[0])), reverse=True)
    return [request for group in groups for request in group]


def _alike(requests: Sequence[Request]) -> Iterator[list[Request]]:
    """Groups of requests whose texts share at least half of the shorter one with a neighbour's."""
    group: list[Request] = []
    for request in sorted(requests, key=_text):
        if group and not _share_half(_text(group[-1]), _text(request)):
            yield group
            group = []
        group.append(request)
    if group:
        yield group


def _share_half(one: str, other: str) -> bool:
    half = (min(len(one), len(other)) + 1) // 2
    return one[:half] == other[:half]


def _text(request: Request) -> str:
    """What the teacher reads, in its order; characters stand for tokens."""
    return "\n".join([*(message.content for message in request.prompt.messages), request.forced or ""])

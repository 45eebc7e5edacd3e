"""What Cosmic Ray's own operators do not try: a call that is left out, such as a `flush()` before an fsync."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from cosmic_ray.operators.operator import Example, Operator
from cosmic_ray.plugins import OPERATOR_PROVIDERS
from parso.python.tree import Keyword


class DropCall(Operator):
    """A call whose result nobody takes becomes `pass`."""

    def mutation_positions(self, node: Any) -> Iterator[tuple[tuple[int, int], tuple[int, int]]]:
        stands_alone = node.parent is not None and node.parent.type == "simple_stmt"
        if stands_alone and node.type == "atom_expr" and node.children[-1].get_last_leaf().value == ")":
            yield node.start_pos, node.end_pos

    def mutate(self, node: Any, index: int) -> Any:
        first = node.get_first_leaf()
        return Keyword("pass", first.start_pos, prefix=first.prefix)

    @classmethod
    def examples(cls) -> tuple[Example, ...]:
        return (
            Example("a.flush()\n", "pass\n"),
            Example("x = 1\nawait send(it)\n", "x = 1\npass\n"),
        )


class Provider:
    """What Cosmic Ray asks a plug-in for."""

    def __iter__(self) -> Iterator[str]:
        return iter(["DropCall"])

    def __getitem__(self, name: str) -> type[Operator]:
        return {"DropCall": DropCall}[name]


def register() -> None:
    """Let Cosmic Ray find them, in this process."""
    OPERATOR_PROVIDERS["stillhouse"] = Provider()

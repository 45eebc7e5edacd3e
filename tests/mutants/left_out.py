"""The places of a module that are not mutated, because no test could or should tell: see `REASONS`.

Strings are not mutated at all (Cosmic Ray has no operator for them), so docstrings and comments are none of these.
"""

from __future__ import annotations

import ast
from collections.abc import Iterator
from dataclasses import dataclass

REASONS = (
    "type annotations and type aliases, which nothing evaluates",
    "the arguments of exceptions and of log calls: the words of a message",
    "decorators (`frozen=True`, `@property`, `@cache`)",
    "a number above 10 changed by 1: a wait, a size or a count that is a tenth larger or less",
    "`if TYPE_CHECKING` and `if __name__ == '__main__'`",
    "the minus of `dim=-1`: of two axes, 1 is the last too",
    "`is` in the place of another comparison, which Python's small numbers and literals do not tell apart",
)
_LARGE = 10
Position = tuple[int, int]  # line from 1, column from 0


@dataclass(frozen=True)
class Span:
    """A part of a file, from its first character to the one behind its last."""

    start: Position
    end: Position

    def holds(self, position: Position) -> bool:
        return self.start <= position < self.end


def left_out(source: str) -> list[Span]:
    """Where a module's code is not mutated."""
    tree = ast.parse(source)
    return [_span(node) for part in ast.walk(tree) for node in _not_mutated(part)]


def is_left_out(operator: str, text: str) -> bool:
    """Whether an operator is not applied to this text, wherever it stands."""
    replaced, _, by = operator.rpartition("_")
    if "ReplaceComparisonOperator" in operator and by in ("Is", "IsNot"):
        return not replaced.endswith(("_Is", "_IsNot"))
    if operator.endswith("RemoveDecorator"):
        return True
    return operator.endswith("NumberReplacer") and abs(complex(ast.literal_eval(text))) > _LARGE


def _not_mutated(node: ast.AST) -> Iterator[ast.AST]:
    match node:
        case ast.AnnAssign(annotation=annotation):
            yield annotation
            if "TypeAlias" in ast.dump(annotation) and node.value is not None:
                yield node.value
        case ast.arg(annotation=ast.expr() as annotation):
            yield annotation
        case ast.FunctionDef() | ast.AsyncFunctionDef() | ast.ClassDef():
            yield from node.decorator_list
            if not isinstance(node, ast.ClassDef) and node.returns is not None:
                yield node.returns
        case ast.If(test=ast.Name(id="TYPE_CHECKING") | ast.Compare(left=ast.Name(id="__name__"))):
            yield node.test
        case ast.keyword(arg="dim", value=ast.UnaryOp() as negative):
            yield negative
        case ast.Raise(exc=ast.Call(args=arguments, keywords=named)):
            yield from (*arguments, *named)
        case ast.Call(func=ast.Attribute(value=ast.Name(id="_LOG"))) | ast.Call(func=ast.Name(id="print")):
            yield node
        case ast.Call(func=ast.Name(id=name)) if _is_exception(name):
            yield from (*node.args, *node.keywords)


def _is_exception(name: str) -> bool:
    from stillhouse import errors

    known = getattr(errors, name, None)
    return name.endswith("Error") or (isinstance(known, type) and issubclass(known, BaseException))


def _span(node: ast.AST) -> Span:
    where: ast.expr = node  # type: ignore[assignment]
    if isinstance(node, ast.UnaryOp):  # its sign alone
        return Span((where.lineno, where.col_offset), (where.lineno, where.col_offset + 1))
    return Span((where.lineno, where.col_offset), (where.end_lineno or 0, where.end_col_offset or 0))

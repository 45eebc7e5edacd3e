"""The Jinja environment of prompt templates: what is printed is text, and nothing runs for ever.

    template = TextEnvironment().from_string("{{ word }}: {{ tags | join(', ') }}")

Jinja prints whatever it is given as Python does: "None", "['a', 'b']", "b'kettle'". Here every way of printing goes through
`printed`: the expression itself (Jinja's `finalize`), `~`, `%`, `str.format`, `join`, and each filter that makes a text of
its value. Lists and objects stay what they are for loops, tests, attributes and filters, and are refused where they would
be printed whole.

Templates come with recipes and data, so they run in Jinja's sandbox; loops and calls are counted, and what would fill the
memory is refused.
"""

from __future__ import annotations

import functools
import numbers
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence, Sized
from typing import Any

import jinja2
import jinja2.meta
from jinja2 import nodes
from jinja2.filters import FILTERS, make_attrgetter
from jinja2.runtime import Context, Undefined
from jinja2.sandbox import ImmutableSandboxedEnvironment, SandboxedFormatter
from jinja2.visitor import NodeTransformer

from stillhouse.inputs.cells import NotText, cell_text

MOST_STEPS = 1_000_000  # turns of loops and calls of one rendering
_MOST_ITEMS = 10_000_000  # of a text or a list that `*` makes
_MOST_BITS = 100_000  # of an integer that `**` makes

# Filters that make a text of their value, however Python would print it.
_PRINTING = [
    "capitalize",
    "center",
    "e",
    "escape",
    "forceescape",
    "indent",
    "lower",
    "pprint",
    "safe",
    "string",
    "striptags",
    "title",
    "trim",
    "truncate",
    "upper",
    "urlize",
    "wordcount",
    "wordwrap",
]


class TooMuchWork(ValueError):
    """A template that would run for ever or fill the memory."""


def printed(value: Any) -> Any:
    """A value as the text that a prompt gets; a text stays the object that it is.

    Raises:
        NotText: it is null, a list, an object, or of another kind that has no text.
        jinja2.UndefinedError: it is not there.
    """
    if isinstance(value, Undefined):
        return str(value)  # raises, as the environment's undefined values are strict
    text = cell_text(value)
    if text is None:
        raise NotText("null", None)
    return text


class TextEnvironment(ImmutableSandboxedEnvironment):
    """See the module's docstring. One thread renders at a time."""

    intercepted_binops = frozenset(["%", "*", "**"])

    def __init__(self) -> None:
        super().__init__(undefined=jinja2.StrictUndefined, keep_trailing_newline=False, finalize=printed)
        self.steps = 0  # of the rendering under way
        self.filters |= {name: _printing(FILTERS[name], 1) for name in _PRINTING}
        self.filters |= {"replace": _printing(FILTERS["replace"], 3), "join": _join, "format": _format}
        self.filters |= {"urlencode": _urlencode, _AS_TEXT: printed, _COUNTED: self._counted}
        self.policies["json.dumps_kwargs"] = {"sort_keys": True, "default": _json_value}

    def compile_text(self, text: str) -> tuple[jinja2.Template, frozenset[str]]:
        """A template, and the names of the variables that it uses.

        Raises:
            jinja2.TemplateSyntaxError: it is wrong.
        """
        tree = self.parse(text)
        variables = frozenset(jinja2.meta.find_undeclared_variables(tree))
        return self.from_string(_Guarded().visit(tree)), variables

    def render(self, template: jinja2.Template, values: Mapping[str, Any]) -> str:
        """A template's text.

        Raises:
            NotText: something is printed that has no text.
            TooMuchWork: it would run for ever.
            Exception: whatever else the template's expressions raise.
        """
        self.steps = 0
        return template.render(values)

    def call(__self, __context: Context, __obj: Any, *args: Any, **kwargs: Any) -> Any:  # noqa: N805  as in Jinja
        __self._count(1)
        return super().call(__context, __obj, *args, **kwargs)

    def call_binop(self, context: Context, operator: str, left: Any, right: Any) -> Any:
        if operator == "%" and isinstance(left, str):
            right = _formatted_all(right)
        elif operator == "*":
            for many, count in ((left, right), (right, left)):
                if isinstance(many, (str, bytes, Sequence)) and isinstance(count, int):
                    _refuse_above(_MOST_ITEMS, len(many) * count, "items")
        elif operator == "**" and isinstance(left, int) and isinstance(right, int):
            _refuse_above(_MOST_BITS, left.bit_length() * right, "bits")
        return super().call_binop(context, operator, left, right)

    def wrap_str_format(self, value: Any) -> Callable[..., str] | None:
        if super().wrap_str_format(value) is None:
            return None
        text, of_mapping = str(value.__self__), value.__name__ == "format_map"

        def formatted(*args: Any, **kwargs: Any) -> str:
            return _TextFormatter(self).vformat(text, () if of_mapping else args, args[0] if of_mapping else kwargs)

        return formatted

    def _count(self, steps: int) -> None:
        self.steps += steps
        if self.steps > MOST_STEPS:
            raise TooMuchWork(f"it takes more than {MOST_STEPS:,} turns of loops and calls")

    def _counted(self, items: Iterable[Any]) -> Iterable[Any]:
        """What a loop goes over, its items counted."""
        if isinstance(items, Sized) and not isinstance(items, Undefined):
            self._count(len(items))
            return items
        return self._counting(items)

    def _counting(self, items: Iterable[Any]) -> Iterator[Any]:
        for item in items:
            self._count(1)
            yield item


# ---------------------------------------------------------------------------------------------------------------- within

_AS_TEXT = "as_text"
_COUNTED = "counted"


class _Guarded(NodeTransformer):
    """Puts our filters where Jinja has no hook: around the parts of `~`, and around what a loop goes over."""

    def visit_Concat(self, node: nodes.Concat) -> nodes.Node:  # noqa: N802  named by Jinja
        self.generic_visit(node)
        node.nodes = [_filtered(one, _AS_TEXT) for one in node.nodes]
        return node

    def visit_For(self, node: nodes.For) -> nodes.Node:  # noqa: N802
        self.generic_visit(node)
        node.iter = _filtered(node.iter, _COUNTED)
        return node


def _filtered(node: nodes.Node, name: str) -> nodes.Filter:
    return nodes.Filter(node, name, [], [], None, None, lineno=node.lineno)


class _TextFormatter(SandboxedFormatter):
    """`str.format` of values that are printed as everywhere else; a number keeps its format."""

    def format_field(self, value: Any, format_spec: str) -> Any:
        return super().format_field(_formatted(value), format_spec)

    def convert_field(self, value: Any, conversion: Any) -> Any:
        return super().convert_field(printed(value) if conversion else value, conversion)


class _FormattedItems(Mapping[str, Any]):
    """The right side of `"%(name)s" % row`: an entry is looked at where it is used."""

    def __init__(self, given: Mapping[str, Any]) -> None:
        self._given = given

    def __getitem__(self, name: str) -> Any:
        return _formatted(self._given[name])

    def __iter__(self) -> Iterator[str]:
        return iter(self._given)

    def __len__(self) -> int:
        return len(self._given)

    def __repr__(self) -> str:
        return str(printed(self._given))  # raises: the whole of it is no text


def _formatted(value: Any) -> Any:
    """A number as it is, since `%d` and `{:.2f}` want one; anything else as its text."""
    text = printed(value)
    is_number = isinstance(value, numbers.Number) and not isinstance(value, bool)
    return value if is_number else text


def _formatted_all(given: Any) -> Any:
    if isinstance(given, tuple):
        return tuple(map(_formatted, given))
    return _FormattedItems(given) if isinstance(given, Mapping) else _formatted(given)


def _printing(filter_: Callable[..., Any], count: int) -> Callable[..., Any]:
    """A filter of Jinja's whose first `count` values are made texts."""
    first = 1 if hasattr(filter_, "jinja_pass_arg") else 0  # what Jinja itself passes stands before them

    @functools.wraps(filter_)
    def guarded(*args: Any, **kwargs: Any) -> Any:
        texts = map(printed, args[first : first + count])
        return filter_(*args[:first], *texts, *args[first + count :], **kwargs)

    return guarded


def _format(text: Any, *args: Any, **kwargs: Any) -> Any:
    return FILTERS["format"](printed(text), *map(_formatted, args), **{k: _formatted(v) for k, v in kwargs.items()})


@jinja2.pass_environment
def _join(environment: jinja2.Environment, items: Any, d: Any = "", attribute: Any = None) -> str:
    values = items if attribute is None else map(make_attrgetter(environment, attribute), items)
    return str(printed(d)).join(str(printed(item)) for item in values)


def _urlencode(value: Any) -> Any:
    is_pairs = isinstance(value, (Mapping, list, tuple))
    return FILTERS["urlencode"](value if is_pairs else printed(value))


def _json_value(value: Any) -> Any:
    """What JSON has no form of (a date, bytes) as `tojson` writes it."""
    if isinstance(value, Undefined):
        return str(value)  # raises
    return cell_text(value)


def _refuse_above(most: int, size: int, unit: str) -> None:
    if size > most:
        raise TooMuchWork(f"it makes something of {size:,} {unit}, and may make {most:,}")

"""The Jinja environment of prompt templates: it prints only text, and limits time and memory.

    >>> environment = TextEnvironment()
    >>> template, variables = environment.compile_text("{{ word }}: {{ tags | join(', ') }}")
    >>> environment.render(template, {"word": "tram", "tags": ["rail", 3]})
    'tram: rail, 3'

Jinja prints any value as Python does: "None", "['a', 'b']", "b'kettle'". Here every way to print goes through `as_text`:
expressions (Jinja's `finalize`), `~`, `%`, `str.format`, `join`, and each filter that converts its value to text. Lists and
objects keep their type in loops, tests, attributes and filters; printing one whole is an error.

Templates come with recipes and data, so they run in Jinja's sandbox. Loop iterations and calls are counted and limited, and
operations whose result would fill the memory are refused.
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

MAX_STEPS = 1_000_000  # loop iterations and calls per rendering
_MAX_ITEMS = 10_000_000  # length of a text or list made by `*`
_MAX_BITS = 100_000  # size of an integer made by `**`

# Filters that convert their value to text with Python's str().
_TEXT_FILTERS = [
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


class TemplateLimitExceeded(ValueError):
    """A template exceeds the limit on steps or memory."""


def as_text(value: Any) -> Any:
    """Return a value as the text that goes into a prompt; a string is returned as the same object.

    Raises:
        NotText: the value is null, a list, an object, or of another type without a text form.
        jinja2.UndefinedError: the value is undefined.
    """
    if isinstance(value, Undefined):
        return str(value)  # raises: the environment uses StrictUndefined
    text = cell_text(value)
    if text is None:
        raise NotText("null", None)
    return text


class TextEnvironment(ImmutableSandboxedEnvironment):
    """The Jinja environment of prompt templates; see the module's docstring. Not thread-safe: it counts steps."""

    intercepted_binops = frozenset(["%", "*", "**"])

    def __init__(self) -> None:
        super().__init__(undefined=jinja2.StrictUndefined, keep_trailing_newline=False, finalize=as_text)
        self.steps = 0  # of the current rendering
        self.filters |= {name: _with_text_arguments(FILTERS[name], 1) for name in _TEXT_FILTERS}
        self.filters |= {"replace": _with_text_arguments(FILTERS["replace"], 3), "join": _join, "format": _format}
        self.filters |= {"urlencode": _urlencode, _AS_TEXT: as_text, _COUNTED: self._counted}
        self.policies["json.dumps_kwargs"] = {"sort_keys": True, "default": _json_value}

    def compile_text(self, text: str) -> tuple[jinja2.Template, frozenset[str]]:
        """Compile a template; return it with the names of its variables.

        Raises:
            jinja2.TemplateSyntaxError: the template has a syntax error.
        """
        tree = self.parse(text)
        variables = frozenset(jinja2.meta.find_undeclared_variables(tree))
        return self.from_string(_FilterInserter().visit(tree)), variables

    def render(self, template: jinja2.Template, values: Mapping[str, Any]) -> str:
        """Return a template rendered with `values`.

        Raises:
            NotText: the template prints a value without a text form.
            TemplateLimitExceeded: the template exceeds the limit on steps or memory.
            Exception: an expression of the template raises another error.
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
                    _check_limit(_MAX_ITEMS, len(many) * count, "items")
        elif operator == "**" and isinstance(left, int) and isinstance(right, int):
            _check_limit(_MAX_BITS, left.bit_length() * right, "bits")
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
        if self.steps > MAX_STEPS:
            raise TemplateLimitExceeded(f"it takes more than {MAX_STEPS:,} loop iterations and calls")

    def _counted(self, items: Iterable[Any]) -> Iterable[Any]:
        """Return the iterable of a loop, counting its items as steps."""
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


class _FilterInserter(NodeTransformer):
    """Insert our filters where Jinja has no hook: around the operands of `~`, and around the iterable of a loop."""

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
    """`str.format` that converts values with `as_text`; numbers keep their format specification."""

    def format_field(self, value: Any, format_spec: str) -> Any:
        return super().format_field(_formatted(value), format_spec)

    def convert_field(self, value: Any, conversion: Any) -> Any:
        return super().convert_field(as_text(value) if conversion else value, conversion)


class _FormattedItems(Mapping[str, Any]):
    """The right-hand mapping of `"%(name)s" % row`; entries are converted when they are used."""

    def __init__(self, given: Mapping[str, Any]) -> None:
        self._given = given

    def __getitem__(self, name: str) -> Any:
        return _formatted(self._given[name])

    def __iter__(self) -> Iterator[str]:
        return iter(self._given)

    def __len__(self) -> int:
        return len(self._given)

    def __repr__(self) -> str:
        return str(as_text(self._given))  # raises: a mapping has no text form


def _formatted(value: Any) -> Any:
    """Return a number unchanged, since `%d` and `{:.2f}` need one, and any other value as text."""
    text = as_text(value)
    is_number = isinstance(value, numbers.Number) and not isinstance(value, bool)
    return value if is_number else text


def _formatted_all(given: Any) -> Any:
    if isinstance(given, tuple):
        return tuple(map(_formatted, given))
    return _FormattedItems(given) if isinstance(given, Mapping) else _formatted(given)


def _with_text_arguments(filter_: Callable[..., Any], count: int) -> Callable[..., Any]:
    """Wrap a Jinja filter so that its first `count` arguments are converted to text."""
    first = 1 if hasattr(filter_, "jinja_pass_arg") else 0  # skip the argument that Jinja itself passes

    @functools.wraps(filter_)
    def guarded(*args: Any, **kwargs: Any) -> Any:
        texts = map(as_text, args[first : first + count])
        return filter_(*args[:first], *texts, *args[first + count :], **kwargs)

    return guarded


def _format(text: Any, *args: Any, **kwargs: Any) -> Any:
    return FILTERS["format"](as_text(text), *map(_formatted, args), **{k: _formatted(v) for k, v in kwargs.items()})


@jinja2.pass_environment
def _join(environment: jinja2.Environment, items: Any, d: Any = "", attribute: Any = None) -> str:
    values = items if attribute is None else map(make_attrgetter(environment, attribute), items)
    return str(as_text(d)).join(str(as_text(item)) for item in values)


def _urlencode(value: Any) -> Any:
    is_pairs = isinstance(value, (Mapping, list, tuple))
    return FILTERS["urlencode"](value if is_pairs else as_text(value))


def _json_value(value: Any) -> Any:
    """Return the text that `tojson` writes for a value without a JSON form, such as a date or bytes."""
    if isinstance(value, Undefined):
        return str(value)  # raises
    return cell_text(value)


def _check_limit(most: int, size: int, unit: str) -> None:
    if size > most:
        raise TemplateLimitExceeded(f"it creates a value of {size:,} {unit}; the limit is {most:,}")

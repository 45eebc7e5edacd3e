"""Parse and write the YAML of recipes: the core schema of YAML 1.2, without duplicate keys.

    >>> parse_yaml("[1e-4, yes, 010, true]")
    [0.0001, 'yes', 10, True]
    >>> parse_yaml(dump_yaml({"name": "yes"}))
    {'name': 'yes'}

PyYAML reads YAML 1.1, where `yes` is true, `1e-4` a string, `010` eight, `1:30` ninety and 2024-01-01 a date, and where the
last of two equal keys silently wins. Here only `true` and `false` are booleans, numbers are what they look like, everything
else except null is a string, and a duplicate key in a mapping is an error that names both lines.
"""

from __future__ import annotations

import re
from collections.abc import Hashable
from typing import Any, ClassVar

import yaml

_MOST_NODES = 100_000  # of a document with its aliases expanded
_RESOLVERS = [  # the core schema of YAML 1.2.2, section 10.3.2
    ("tag:yaml.org,2002:bool", re.compile(r"^(?:true|True|TRUE|false|False|FALSE)$"), "tTfF"),
    ("tag:yaml.org,2002:int", re.compile(r"^(?:[-+]?[0-9]+|0o[0-7]+|0x[0-9a-fA-F]+)$"), "-+0123456789"),
    (
        "tag:yaml.org,2002:float",
        re.compile(
            r"^(?:[-+]?(?:\.[0-9]+|[0-9]+(?:\.[0-9]*)?)(?:[eE][-+]?[0-9]+)?|[-+]?\.(?:inf|Inf|INF)|\.(?:nan|NaN|NAN))$"
        ),
        "-+.0123456789",
    ),
    ("tag:yaml.org,2002:null", re.compile(r"^(?:~|null|Null|NULL|)$"), ["~", "n", "N", ""]),
    ("tag:yaml.org,2002:merge", re.compile(r"^<<$"), "<"),
]


class YamlError(ValueError):
    """The text is not valid YAML for a recipe; the message says where."""


class _Loader(yaml.SafeLoader):
    """SafeLoader with the core schema that rejects duplicate keys and keys that are not strings."""

    yaml_implicit_resolvers: ClassVar[dict[str, Any]] = {}  # type: ignore[misc]

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict[Hashable, Any]:
        lines: dict[Any, int] = {}
        for key_node, _ in node.value:
            if key_node.tag == "tag:yaml.org,2002:merge":
                continue
            key, line = self.construct_object(key_node, deep=True), key_node.start_mark.line + 1
            if not isinstance(key, str):
                raise YamlError(f"line {line}: the key {key!r} is not a string: write it as {str(key)!r}")
            if key in lines:
                raise YamlError(
                    f"the key {key!r} occurs twice in one mapping, in lines {lines[key]} and {line}: merge the two"
                )
            lines[key] = line
        return super().construct_mapping(node, deep=deep)


class _Dumper(yaml.SafeDumper):
    """SafeDumper that quotes exactly the strings that the core schema would not read as strings."""

    yaml_implicit_resolvers: ClassVar[dict[str, Any]] = {}  # type: ignore[misc]


def _construct_int(loader: _Loader, node: yaml.ScalarNode) -> int:
    text = loader.construct_scalar(node)
    return int(text, 0) if text.startswith(("0o", "0x")) else int(text)


def _represent_str(dumper: _Dumper, text: str) -> yaml.ScalarNode:
    """Represent a string; line breaks that YAML 1.2 does not know are escaped, since PyYAML would fold them into spaces."""
    style = '"' if any(mark in text for mark in "\x85\u2028\u2029\ufeff") else None
    return dumper.represent_scalar("tag:yaml.org,2002:str", text, style=style)


_Loader.add_constructor("tag:yaml.org,2002:int", _construct_int)
_Dumper.add_representer(str, _represent_str)
for _tag, _pattern, _first in _RESOLVERS:
    _Loader.add_implicit_resolver(_tag, _pattern, list(_first))
    _Dumper.add_implicit_resolver(_tag, _pattern, list(_first))


def parse_yaml(text: str) -> Any:
    """Parse a single YAML document into dicts with string keys, lists, strings, numbers, booleans and None.

    Raises:
        YamlError: the text is not valid YAML or is nested too deeply, a key is duplicate or not a string, or aliases are
            recursive or expand to more than 100,000 values.
    """
    try:
        loader = _Loader(text)
        node = loader.get_single_node()
        if node is None:
            return None
        if _count_nodes(node, {}, set()) > _MOST_NODES:
            raise YamlError(f"its aliases expand to more than {_MOST_NODES:,} values: use fewer aliases")
        return loader.construct_document(node)
    except yaml.YAMLError as error:
        raise YamlError(str(error)) from None
    except RecursionError:
        raise YamlError("it is nested too deeply") from None


def dump_yaml(data: Any) -> str:
    """Return plain data as YAML, with keys in their order."""
    return yaml.dump(data, Dumper=_Dumper, sort_keys=False, allow_unicode=True)


def _count_nodes(node: yaml.Node, known: dict[int, int], within: set[int]) -> int:
    """Count the values of a node with its aliases expanded."""
    if id(node) in within:
        raise YamlError(f"line {node.start_mark.line + 1}: an alias refers to a value that contains the alias")
    if id(node) not in known:
        within.add(id(node))
        children = (
            [part for pair in node.value for part in pair]
            if isinstance(node, yaml.MappingNode)
            else node.value
            if isinstance(node, yaml.SequenceNode)
            else []
        )
        known[id(node)] = 1 + sum(_count_nodes(child, known, within) for child in children)
        within.discard(id(node))
    return known[id(node)]

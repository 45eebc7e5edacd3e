"""YAML as a recipe is written in: the core schema of YAML 1.2, and no key twice.

    data = parse_yaml(text)
    text = dump_yaml(data)          # parse_yaml gives the same data again

PyYAML reads YAML 1.1, where `yes` is true, `1e-4` a text, `010` eight, `1:30` ninety and 2024-01-01 a date, and where the
last of two equal keys wins without a word. Here `true` and `false` alone are truth values, numbers are what they look like,
everything else is text, and a key that stands twice in one mapping is an error with both lines.
"""

from __future__ import annotations

import re
from collections.abc import Hashable
from typing import Any, ClassVar

import yaml

_MOST_NODES = 100_000  # of a document with its aliases written out
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
    """A text is not the YAML that a recipe may be written in; the message says where."""


class _Loader(yaml.SafeLoader):
    """SafeLoader with the core schema, which refuses a key that stands twice."""

    yaml_implicit_resolvers: ClassVar[dict[str, Any]] = {}  # type: ignore[misc]

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict[Hashable, Any]:
        lines: dict[Any, int] = {}
        for key_node, _ in node.value:
            if key_node.tag == "tag:yaml.org,2002:merge":
                continue
            key, line = self.construct_object(key_node, deep=True), key_node.start_mark.line + 1
            if not isinstance(key, str):
                raise YamlError(f"line {line}: the key {key!r} is no text: write it as {str(key)!r}")
            if key in lines:
                raise YamlError(
                    f"the key {key!r} stands twice in one mapping, in line {lines[key]} and in line {line}: join the two"
                )
            lines[key] = line
        return super().construct_mapping(node, deep=deep)


class _Dumper(yaml.SafeDumper):
    """SafeDumper that quotes what the core schema would not read as text, and nothing else."""

    yaml_implicit_resolvers: ClassVar[dict[str, Any]] = {}  # type: ignore[misc]


def _whole_number(loader: _Loader, node: yaml.ScalarNode) -> int:
    text = loader.construct_scalar(node)
    return int(text, 0) if text.startswith(("0o", "0x")) else int(text)


def _text(dumper: _Dumper, text: str) -> yaml.ScalarNode:
    """Line ends that are none of YAML 1.2 are escaped: PyYAML would fold them into spaces."""
    style = '"' if any(mark in text for mark in "\x85\u2028\u2029\ufeff") else None
    return dumper.represent_scalar("tag:yaml.org,2002:str", text, style=style)


_Loader.add_constructor("tag:yaml.org,2002:int", _whole_number)
_Dumper.add_representer(str, _text)
for _tag, _pattern, _first in _RESOLVERS:
    _Loader.add_implicit_resolver(_tag, _pattern, list(_first))
    _Dumper.add_implicit_resolver(_tag, _pattern, list(_first))


def parse_yaml(text: str) -> Any:
    """The one document of a text: dicts with text keys, lists, texts, numbers, true, false and None.

    Raises:
        YamlError: it cannot be parsed, a key stands twice or is no text, or aliases make it endless.
    """
    try:
        loader = _Loader(text)
        node = loader.get_single_node()
        if node is None:
            return None
        if _nodes(node, {}, set()) > _MOST_NODES:
            raise YamlError(f"its aliases stand for more than {_MOST_NODES:,} values: write them out")
        return loader.construct_document(node)
    except yaml.YAMLError as error:
        raise YamlError(str(error)) from None
    except RecursionError:
        raise YamlError("it is nested too deeply") from None


def dump_yaml(data: Any) -> str:
    """The YAML of plain data, in the order of its keys."""
    return yaml.dump(data, Dumper=_Dumper, sort_keys=False, allow_unicode=True)


def _nodes(node: yaml.Node, known: dict[int, int], within: set[int]) -> int:
    """How many values a node stands for, its aliases written out."""
    if id(node) in within:
        raise YamlError(f"line {node.start_mark.line + 1}: an alias stands for something that contains it")
    if id(node) not in known:
        within.add(id(node))
        children = (
            [part for pair in node.value for part in pair]
            if isinstance(node, yaml.MappingNode)
            else node.value
            if isinstance(node, yaml.SequenceNode)
            else []
        )
        known[id(node)] = 1 + sum(_nodes(child, known, within) for child in children)
        within.discard(id(node))
    return known[id(node)]

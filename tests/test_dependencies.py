"""`make install` brings all that the product imports: no module of it is there only in the developers' environment."""

import ast
import re
import sys
import tomllib
from collections.abc import Iterator
from importlib.metadata import PackageNotFoundError, packages_distributions, requires
from pathlib import Path

from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

from tests.paths import ROOT

FOLDERS, OURS = ("pipeline", "flows"), {"stillhouse", "stillhouse_flows"}
ON_REQUEST = {
    "anthropic",
    "polars",
    "ray",
    "torchao",
    "vllm",
    "liger_kernel",
}  # of extras, or installed by who needs them; a message says how


def _imported() -> Iterator[tuple[str, Path]]:
    for folder in FOLDERS:
        for file in (ROOT / folder).rglob("*.py"):
            for node in ast.walk(ast.parse(file.read_text("utf-8"))):
                if isinstance(node, ast.Import):
                    yield from ((alias.name.partition(".")[0], file) for alias in node.names)
                elif isinstance(node, ast.ImportFrom) and not node.level and node.module:
                    yield node.module.partition(".")[0], file


def _installed_by(declared: list[str]) -> set[str]:
    """The names of the packages that these requirements bring, and of those that they need."""
    found: set[str] = set()
    waiting = [Requirement(one) for one in declared]
    while waiting:
        one = waiting.pop()
        name = canonicalize_name(one.name)
        extras = one.extras or {""}
        if name in found and not one.extras:
            continue
        found.add(name)
        try:
            needed = requires(one.name) or []
        except PackageNotFoundError:
            continue
        for text in needed:
            more = Requirement(text)
            if more.marker is None or any(more.marker.evaluate({"extra": extra}) for extra in extras):
                waiting.append(more)
    return found


def test_every_import_of_the_product_is_installed_by_its_dependencies() -> None:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text("utf-8"))["project"]
    brought = _installed_by(project["dependencies"])
    known = packages_distributions()
    missing = {
        (module, str(file.relative_to(ROOT)))
        for module, file in _imported()
        if module not in {*OURS, *ON_REQUEST, *sys.stdlib_module_names, "_typeshed"}
        and not {canonicalize_name(name) for name in known.get(module, [module])} & brought
    }
    assert missing == set()


def test_every_package_of_the_extras_is_pinned() -> None:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text("utf-8"))["project"]
    pins = {
        canonicalize_name(re.split("[=; ]", line)[0])
        for line in (ROOT / "constraints.txt").read_text("utf-8").split("\n")
    }
    assert {canonicalize_name(Requirement(one).name) for one in project["dependencies"]} <= pins

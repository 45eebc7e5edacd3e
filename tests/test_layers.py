"""The rooms of the package: a module imports only from rooms above its own, and no room has an import cycle."""

from __future__ import annotations

import ast
import subprocess
import sys
from collections.abc import Iterator
from functools import cache
from graphlib import CycleError, TopologicalSorter
from itertools import pairwise
from pathlib import Path

import pytest

from tests.paths import ROOT

PACKAGE = ROOT / "pipeline/stillhouse"
# In the order of docs/architecture.md: a room does not import from the rooms after it.
SHARED = (  # modules at the root
    *("text", "formatting", "errors", "records", "progress", "settings", "plugin_code", "plugins"),
)
ROOMS = (
    *SHARED,
    *("inputs", "storage", "recipe", "processes", "models", "prompts", "dataset", "teachers", "quality", "labelling"),
    *("student", "evaluation", "exchange", "stages", "api", "cli", "__main__"),
)


def module_name(file: Path) -> str:
    """Return the module's name, such as `student.losses.base`; "" for the package's `__init__`."""
    parts = file.relative_to(PACKAGE).with_suffix("").parts
    return ".".join(parts[:-1] if parts[-1] == "__init__" else parts)


MODULES = {module_name(file): file for file in sorted(PACKAGE.rglob("*.py"))}


@cache
def imported(module: str) -> frozenset[str]:
    """Return the modules that a module imports: at the top, inside a function, or for type checking."""

    def named() -> Iterator[str]:
        for node in ast.walk(ast.parse(MODULES[module].read_text("utf-8"))):
            if isinstance(node, ast.Import):
                yield from (alias.name for alias in node.names)
            elif isinstance(node, ast.ImportFrom) and node.module:
                for alias in node.names:
                    inside = f"{node.module}.{alias.name}"
                    yield inside if inside.removeprefix("stillhouse.") in MODULES else node.module

    found = {name.removeprefix("stillhouse.") for name in named() if name.startswith("stillhouse.")}
    return frozenset(found & set(MODULES))


def graph_inside(folder: str) -> dict[str, dict[str, str]]:
    """Map each module and folder of a folder to those of the same folder that it imports, each with an example."""
    prefix = f"{folder}." if folder else ""
    found: dict[str, dict[str, str]] = {}
    for module in MODULES:
        if not module.startswith(prefix) or module == folder:
            continue
        own = module.removeprefix(prefix).split(".")[0]
        edges = found.setdefault(own, {})
        for other in imported(module):
            if other.startswith(prefix) and (theirs := other.removeprefix(prefix).split(".")[0]) != own:
                edges[theirs] = f"{module} imports {other}"
    return found


def test_every_room_is_in_the_list() -> None:
    existing = {name.split(".")[0] for name in MODULES if name}
    assert existing == set(ROOMS), "add a new room to ROOMS and to docs/architecture.md"


@pytest.mark.parametrize("room", ROOMS)
def test_a_room_imports_only_from_rooms_before_it(room: str) -> None:
    backwards = [why for theirs, why in graph_inside("")[room].items() if ROOMS.index(theirs) > ROOMS.index(room)]
    assert not backwards


FOLDERS = sorted({name.rpartition(".")[0] for name in MODULES if "." in name})


@pytest.mark.parametrize("folder", FOLDERS)
def test_a_room_has_no_import_cycle(folder: str) -> None:
    """Neither between modules nor between folders; imports inside functions count."""
    graph = graph_inside(folder)
    try:
        TopologicalSorter({name: edges.keys() for name, edges in graph.items()}).prepare()
    except CycleError as error:
        cycle = error.args[1]
        raise AssertionError([graph[b][a] for a, b in pairwise(cycle)]) from None


def test_the_architecture_page_lists_the_rooms_in_this_order() -> None:
    page = (ROOT / "docs/architecture.md").read_text("utf-8")
    places = [page.index(f"| `{room}/` |") for room in ROOMS if room not in (*SHARED, "api", "__main__")]
    assert places == sorted(places)


@pytest.mark.parametrize(
    "module",
    [
        "stillhouse.cli.main",
        "stillhouse.stages.stages",
        "stillhouse.labelling.engine",
        "stillhouse.evaluation.report.report",
        "stillhouse.student.finished.folder",
    ],
)
def test_heavy_libraries_are_not_imported_before_they_are_used(module: str) -> None:
    heavy = {"torch", "transformers", "prefect", "datasets", "ray", "matplotlib"}
    probe = f"import sys, {module}; print(*{heavy} & set(sys.modules))"
    done = subprocess.run([sys.executable, "-c", probe], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == ""

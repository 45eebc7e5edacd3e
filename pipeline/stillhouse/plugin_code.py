"""Identify the code of a plug-in that shapes a result: its distribution, and a hash of its files.

    plugin_code(point)      # {"distribution": "stillhouse-parrot", "version": "0.1", "sha256": "3f1c…"}

The hash covers the module that an entry point names and the modules of its project that it imports, wherever they are
installed, because authors seldom raise the version while they work on a filter. No plug-in code is imported. Files that the
code reads at run time are not covered: if such a file changes, its author must raise the version.
"""

from __future__ import annotations

import ast
import hashlib
import importlib.util
import json
from collections.abc import Iterator
from importlib.machinery import EXTENSION_SUFFIXES, ModuleSpec
from importlib.metadata import Distribution, EntryPoint
from pathlib import Path

from stillhouse.records import content_hash


def plugin_code(point: EntryPoint) -> dict[str, str]:
    """Return the identity of an entry point's code; it has no hash if the code has no files, as in a zip file."""
    identity = {} if point.dist is None else {"distribution": point.dist.name, "version": point.dist.version}
    files = _project_files(point.module, point.dist)
    if files:
        identity["sha256"] = content_hash(
            {name: hashlib.sha256(file.read_bytes()).hexdigest() for name, file in files.items()}
        )
    return identity


def _project_files(module: str, distribution: Distribution | None) -> dict[str, Path]:
    """Return {name: file} of a module, its parent packages, and the modules of its project that it imports."""
    project = _project_modules(module, distribution)
    found: dict[str, Path] = {}
    pending = [module]
    while pending:
        name = pending.pop()
        for parent in _with_parents(name):
            top = parent.partition(".")[0]
            file = (
                _file_of(parent)
                if parent not in found and (top == module.partition(".")[0] or top in project)
                else None
            )
            if file is not None:
                found[parent] = file
                pending += _imports(parent, file)
    return found


def _with_parents(name: str) -> list[str]:
    """a.b.c -> a, a.b, a.b.c"""
    parts = name.split(".")
    return [".".join(parts[: end + 1]) for end in range(len(parts))]


def _imports(name: str, file: Path) -> Iterator[str]:
    """Yield what a module's source imports, anywhere in it; a name may be a module or an object in one."""
    if file.suffix != ".py":
        return
    try:
        tree = ast.parse(file.read_bytes())
    except (SyntaxError, ValueError):
        return
    package = name if file.name == "__init__.py" else name.rpartition(".")[0]
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            parts = package.split(".") if node.level else []
            base = ".".join([*parts[: len(parts) + 1 - node.level], *([node.module] if node.module else [])])
            yield base
            yield from (f"{base}.{alias.name}" for alias in node.names)


def _file_of(name: str) -> Path | None:
    """Return the file of a module, found without importing it; None if there is no such module."""
    top, *below = name.split(".")
    spec = _spec(top)
    if spec is None:
        return None
    if not below:
        return _if_file(Path(spec.origin)) if spec.has_location and spec.origin else None
    *parents, last = below
    for folder in (Path(path, *parents) for path in spec.submodule_search_locations or ()):
        candidates = [folder / last / "__init__.py", folder / f"{last}.py"]
        candidates += [folder / f"{last}{suffix}" for suffix in EXTENSION_SUFFIXES]
        if found := next((file for file in candidates if file.is_file()), None):
            return found
    return None


def _if_file(file: Path) -> Path | None:
    return file if file.is_file() else None


def _spec(top: str) -> ModuleSpec | None:
    try:
        return importlib.util.find_spec(top)
    except (ImportError, ValueError):
        return None


def _project_modules(module: str, distribution: Distribution | None) -> set[str]:
    """Return other top-level modules of the project: those of its distribution and, if editable, those next to it."""
    if distribution is None:
        return set()
    listed = {file.parts[0] for file in distribution.files or () if file.suffix == ".py"}
    if _is_editable(distribution):
        spec = _spec(module.partition(".")[0])
        paths = (
            [spec.origin]
            if spec is not None and spec.origin
            else list(spec.submodule_search_locations or ())
            if spec
            else []
        )
        for path in paths:
            folder = Path(path).parent.parent if Path(path).name == "__init__.py" else Path(path).parent
            listed |= {
                file.name for file in folder.iterdir() if file.suffix == ".py" or (file / "__init__.py").is_file()
            }
    return {name.removesuffix(".py") for name in listed}


def _is_editable(distribution: Distribution) -> bool:
    """Whether the distribution was installed with `pip install -e`."""
    try:
        direct_url = json.loads(distribution.read_text("direct_url.json") or "{}")
    except ValueError:
        return False
    return isinstance(direct_url, dict) and bool((direct_url.get("dir_info") or {}).get("editable"))

"""The usage that docstrings show: `>>>` examples run, and the names in other code blocks exist.

An example runs in a folder of its own, with a recipe file `my-task.yaml` that has not been labelled, and with the names
`recipe` and `dataset` of one that has.
"""

from __future__ import annotations

import ast
import builtins
import doctest
import importlib
import inspect
import io
import json
import re
import shutil
from collections.abc import Iterator
from functools import cache
from pathlib import Path
from types import ModuleType
from typing import Any, NamedTuple

import pytest
import yaml

import stillhouse
from stillhouse.recipe.recipe import Recipe, recipe_from
from tests.conftest import WORDS
from tests.paths import ROOT

PACKAGES = {"stillhouse": ROOT / "pipeline", "stillhouse_flows": ROOT / "flows"}
DocumentedNode = ast.Module | ast.ClassDef | ast.FunctionDef | ast.AsyncFunctionDef
OTHER_METHODS = {
    *dir(Path),
    *dir(dict),
    "result",
    "headers",
    "loads",
    "state_dict",
    "write_table",
    "cat_file",
}  # of others


class Block(NamedTuple):
    """An indented block of a docstring."""

    module: str
    text: str


def module_files() -> Iterator[tuple[str, Path]]:
    for package, source in PACKAGES.items():
        for file in sorted((source / package).rglob("*.py")):
            parts = file.relative_to(source).with_suffix("").parts
            yield ".".join(parts[:-1] if parts[-1] == "__init__" else parts), file


TREES = {module: ast.parse(file.read_text("utf-8")) for module, file in module_files()}


def docstrings(module: str) -> Iterator[str]:
    for node in ast.walk(TREES[module]):
        if isinstance(node, DocumentedNode) and (text := ast.get_docstring(node)):
            yield text


def literal_blocks() -> Iterator[Block]:
    """Every indented block that is Python and no example, of every docstring."""
    for module in TREES:
        for text in docstrings(module):
            for found in re.finditer(r"(?:(?<=\n\n)|\A)(?: {4}.*\n?|\n(?= {4}))+", text):
                code = inspect.cleandoc(found[0])
                if not code.startswith(">>>") and is_python(code):
                    yield Block(module, code)


def is_python(text: str) -> bool:
    """Whether a block is code: it parses, and imports, calls or assigns something."""
    try:
        nodes = list(ast.walk(ast.parse(text)))
    except SyntaxError:
        return False
    return any(isinstance(node, ast.Call | ast.Import | ast.ImportFrom | ast.Assign) for node in nodes)


@cache
def package_names() -> frozenset[str]:
    """Every name that the packages define: of classes, functions, fields and attributes."""
    names = set[str]()
    for node in (node for tree in TREES.values() for node in ast.walk(tree)):
        if isinstance(node, ast.ClassDef | ast.FunctionDef | ast.AsyncFunctionDef):
            names.add(node.name)
        elif isinstance(node, ast.AnnAssign | ast.Assign):
            targets = [node.target] if isinstance(node, ast.AnnAssign) else node.targets
            names |= {one.id for one in targets if isinstance(one, ast.Name)}
            names |= {one.attr for one in targets if isinstance(one, ast.Attribute)}
    return frozenset(names)


def unknown_names(code: str, module: ModuleType) -> list[str]:
    """What a block of a module's docstring imports, calls or reads that does not exist, or is called otherwise."""
    tree = ast.parse(code)
    given = {node.id for node in ast.walk(tree) if isinstance(node, ast.Name) and isinstance(node.ctx, ast.Store)}
    given |= {node.arg for node in ast.walk(tree) if isinstance(node, ast.arg)}
    given |= {node.name for node in ast.walk(tree) if isinstance(node, ast.ClassDef | ast.FunctionDef)}
    unknown = []
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            unknown += [alias.name for alias in node.names if importlib.util.find_spec(alias.name) is None]
        elif isinstance(node, ast.ImportFrom):
            source = importlib.import_module(node.module or "")
            unknown += [alias.name for alias in node.names if not hasattr(source, alias.name)]
        elif isinstance(node, ast.Call) and isinstance(node.func, ast.Name) and node.func.id not in given:
            unknown += wrong_call(node, node.func.id, module)
        elif isinstance(node, ast.Attribute):
            owner = vars(module).get(node.value.id) if isinstance(node.value, ast.Name) else None
            if isinstance(node.value, ast.Name) and node.value.id == "stillhouse":
                owner = stillhouse
            known = hasattr(owner, node.attr) if inspect.ismodule(owner) or inspect.isclass(owner) else False
            if not known and node.attr not in package_names() | OTHER_METHODS:
                unknown.append(f"{ast.unparse(node)}")
    return unknown


def wrong_call(call: ast.Call, name: str, module: ModuleType) -> list[str]:
    """The call, if no such function exists or the module's own does not take these arguments."""
    function = getattr(module, name, getattr(builtins, name, None))
    if function is None:
        return [] if name in package_names() else [name]
    if hasattr(builtins, name) or any(isinstance(one, ast.Starred) for one in call.args):
        return []
    keywords = {one.arg: None for one in call.keywords if one.arg is not None}
    elided = any(isinstance(one, ast.Constant) and one.value is Ellipsis for one in call.args)
    signature = inspect.signature(function)
    try:
        (signature.bind_partial if elided else signature.bind)(*(None for _ in call.args), **keywords)
    except TypeError as error:
        return [f"{ast.unparse(call)}: {error}"]
    return []


# --------------------------------------------------------------------------------------------------------------- examples

EXAMPLES = [module for module in TREES if any(">>> " in text for text in docstrings(module))]


@pytest.fixture(scope="module")
def labelled_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with prompts, a template, a recipe that has not been labelled, and the labels of another one."""
    folder = tmp_path_factory.mktemp("examples")
    rows = [{"word": word, "reference": f"A {word} is a thing."} for word in WORDS]
    (folder / "words.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    (folder / "words.j2").write_text("Explain {{ word }}.\n")
    (folder / "my-task.yaml").write_text(yaml.safe_dump(settings("my-task")))
    with pytest.MonkeyPatch.context() as patched:
        patched.chdir(folder)
        stillhouse.label(words_recipe(), progress=stillhouse.silent)
    return folder


def settings(name: str) -> dict[str, Any]:
    return {
        "name": name,
        "prompts": {"source": "words.jsonl", "template": "words.j2", "holdout": 0.3},
        "teacher": {"kind": "scripted", "options": {"vocabulary": 64}},
        "label": {"soft": {"k": 8}},
        "dataset": {"name": name},
    }


def words_recipe() -> Recipe:
    return recipe_from(settings("words"), "test")


@pytest.mark.parametrize("module", EXAMPLES)
def test_examples_print_what_they_show(
    module: str, labelled_folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    loaded = importlib.import_module(module)
    options = doctest.ELLIPSIS | doctest.NORMALIZE_WHITESPACE
    runner, told = doctest.DocTestRunner(optionflags=options), io.StringIO()
    tests = [test for test in doctest.DocTestFinder().find(loaded) if test.examples]
    assert sum(len(test.examples) for test in tests) == sum(text.count(">>> ") for text in docstrings(module))
    for test in tests:  # each docstring in a folder of its own
        folder = tmp_path / test.name
        shutil.copytree(labelled_folder, folder)
        monkeypatch.chdir(folder)
        test.globs |= {"Path": Path, "recipe": words_recipe(), "dataset": stillhouse.open_dataset("words")}
        runner.run(test, out=told.write)
    assert runner.failures == 0, told.getvalue()


# ---------------------------------------------------------------------------------------------------------- other blocks


@pytest.mark.parametrize("module", sorted({block.module for block in literal_blocks()}))
def test_code_blocks_name_what_exists(module: str) -> None:
    loaded = importlib.import_module(module)
    unknown = [
        name for block in literal_blocks() if block.module == module for name in unknown_names(block.text, loaded)
    ]
    assert unknown == []


def test_the_public_functions_have_examples() -> None:
    """Of those that neither train nor measure a model."""
    for function in (stillhouse.load_recipe, stillhouse.plan, stillhouse.label, stillhouse.open_dataset):
        assert ">>> " in (function.__doc__ or ""), function


@pytest.mark.parametrize(
    ("code", "unknown"),
    [
        ("recipe = load_recipe('my-task.yaml')", []),
        ("load_recipy('my-task.yaml')", ["load_recipy"]),
        ("import stillhouse\nstillhouse.pln(recipe)", ["stillhouse.pln"]),
        ("from stillhouse.api import pln", ["pln"]),
        ("plan(recipe, quickly=True)", ["plan(recipe, quickly=True): got an unexpected keyword argument 'quickly'"]),
        ("label(recipe).datasett", ["label(recipe).datasett"]),
    ],
)
def test_a_name_that_does_not_exist_is_found(code: str, unknown: list[str]) -> None:
    assert unknown_names(code, importlib.import_module("stillhouse.api")) == unknown

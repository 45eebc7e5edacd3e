"""A module imports only from what stands left of it, and only some may import heavy libraries."""

import ast
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
LAYERS = [
    {"errors", "faults", "storage", "durable", "records", "encodings", "columns", "progress", "quiet", "ranks", "text"}
    | {"urls", "weights", "plain_json", "yaml_text", "cells", "user_files", "template_text"},
    {"settings", "label_settings", "student_settings", "sweep_settings", "evaluate_settings", "finetune_settings"},
    {"config", "sweep_points", "plugin_code", "plugins", "pricing"},
    {"model_files", "language_model", "layout", "generation", "head", "labels_from_logits"},
    {"dataset", "prompts", "prompt_rows", "prompt_templates", "prompt_checks", "template_checks"},
    {"teachers", "serving", "live_teacher"},
    {"labelling", "quality"},
    {"student"},
    {"evaluation"},
    {
        "children",
        "stages",
        "sweep",
        "sweep_checks",
        "recipe_checks",
        "launch",
        "finetuning",
        "demo",
        "terminal",
        "shown",
    },
    {"cli", "cli_common", "cli_datasets", "cli_exchange", "cli_flows", "__main__"},
]
RANK = {name: rank for rank, layer in enumerate(LAYERS) for name in layer}


def modules() -> list[Path]:
    return sorted(path for path in (ROOT / "pipeline").rglob("*.py") if path != ROOT / "pipeline/__init__.py")


def imported(path: Path) -> set[str]:
    """First names below `pipeline` of everything that a file imports, at the top or inside a function."""
    names: set[str] = set()
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.ImportFrom) and node.module == "pipeline":
            names |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and (node.module or "").startswith("pipeline."):
            names.add(str(node.module).split(".")[1])
        elif isinstance(node, ast.Import):
            names |= {alias.name.split(".")[1] for alias in node.names if alias.name.startswith("pipeline.")}
    return names & set(RANK)


@pytest.mark.parametrize("path", modules(), ids=lambda path: str(path.relative_to(ROOT)))
def test_a_module_imports_only_from_its_left(path: Path) -> None:
    own = path.relative_to(ROOT / "pipeline").parts[0].removesuffix(".py")
    assert own in RANK, f"{own} has no place in the layers: give it one here and in docs/architecture.md"
    right = {name for name in imported(path) if RANK[name] > RANK[own]}
    assert not right, f"{path.relative_to(ROOT)} imports from its right: {sorted(right)}"


@pytest.mark.parametrize(
    "module", ["pipeline.cli", "pipeline.stages", "pipeline.labelling.engine", "pipeline.student.folder"]
)
def test_heavy_libraries_are_not_imported_before_they_are_used(module: str) -> None:
    probe = (
        f"import sys, {module}; print(*{{'torch', 'transformers', 'prefect', 'datasets', 'ray'}} & set(sys.modules))"
    )
    done = subprocess.run([sys.executable, "-c", probe], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == ""

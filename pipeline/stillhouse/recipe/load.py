"""Load a recipe: one YAML file that describes a whole run.

    >>> recipe = load_recipe("flows/recipes/quickstart.yaml", overrides=["label.sampling.temperature=0"])
    >>> recipe.label.sampling.temperature
    0.0

An unknown key is an error that names its path and the nearest valid key. Nothing is sent or written before the whole recipe
has been validated.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from stillhouse.errors import RecipeError
from stillhouse.inputs.user_files import decode_text
from stillhouse.inputs.yaml_text import parse_yaml
from stillhouse.recipe.overrides import with_overrides
from stillhouse.recipe.recipe import Recipe, recipe_from
from stillhouse.storage.location import Location, location


def load_recipe(path: str | Path, overrides: Sequence[str] | Mapping[str, Any] = ()) -> Recipe:
    """Read a recipe file and apply `a.b=value` overrides (the value is YAML).

    `path` is a file in the working folder, a recipe that ships with Stillhouse, or a URL.

    Raises:
        RecipeError: the file does not exist or is not valid YAML, a key or value is wrong, or two settings contradict each
            other.
    """
    file = find_input(str(path))
    if file is None:
        raise RecipeError(
            f"the recipe {path} does not exist", fix="check the path; `stillhouse --help` shows an example"
        )
    try:
        raw = parse_yaml(decode_text(file.read_bytes()))
    except (ValueError, OSError) as error:
        raise RecipeError(
            f"the recipe {path} cannot be read as YAML: {error}", fix="correct the file, or give another one"
        ) from error
    if not isinstance(raw, dict):
        raise RecipeError(
            f"the recipe {path} is not a mapping of settings", fix="begin it with lines such as `name: my-run`"
        )
    return recipe_from(with_overrides(raw, overrides), origin=str(path))


def find_input(path: str) -> Location | None:
    """Return a file named in a recipe: in the working folder, shipped with Stillhouse, or at a URL; None: it is missing."""
    if "://" in path:
        return far if (far := location(path)).is_file() else None
    return next((file for file in (Path(path), shipped_folder() / path) if file.is_file()), None)


def shipped_folder() -> Path:
    """Return the folder of the shipped recipes and prompt files: in the installed package, or the root of a clone."""
    package = Path(__file__).parents[1]
    inside = package / "shipped"
    return inside if inside.is_dir() else package.parents[1]

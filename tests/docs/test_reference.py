"""The pages of settings and commands are those that the code gives, and describe every one of them."""

import importlib.util
from pathlib import Path
from types import ModuleType

import pytest

import stillhouse.api
from stillhouse.recipe.prompts import PromptSettings
from tests.paths import ROOT

ROOM = ROOT / "docs"


@pytest.fixture(scope="module")
def reference() -> ModuleType:
    """docs/make_reference.py, which lies outside of any package."""
    spec = importlib.util.spec_from_file_location("make_reference", ROOM / "make_reference.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.mark.parametrize("page", ["settings.md", "commands.md"])
def test_the_page_is_up_to_date(page: str, reference: ModuleType) -> None:
    assert reference.pages()[ROOM / page] == (ROOM / page).read_text("utf-8"), "run `make docs`"


def test_a_setting_without_a_description_is_refused(reference: ModuleType, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(PromptSettings.model_fields["split"], "description", None)
    with pytest.raises(reference.Undescribed, match=r"prompts\.split .*PromptSettings\) has no description"):
        reference.settings_page()


def test_every_page_is_in_the_sites_navigation() -> None:
    site = (ROOT / "mkdocs.yml").read_text("utf-8")
    assert not [page.name for page in Path(ROOM).glob("*.md") if page.name not in site]


def test_the_library_page_renders_every_name_of_the_library() -> None:
    page = (ROOM / "library.md").read_text("utf-8")
    in_api = {
        name for name, value in vars(stillhouse.api).items() if getattr(value, "__module__", "") == "stillhouse.api"
    }
    names = set(stillhouse.__all__) - in_api - {"__version__", "RecipeLike", "StillhouseError"}
    assert not [name for name in sorted(names) if f"::: stillhouse.{name}\n" not in page]
    assert "`RecipeLike`" in page  # a union of types: described in words
    assert "::: stillhouse.errors\n" in page

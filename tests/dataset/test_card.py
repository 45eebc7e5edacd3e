"""The card: valid for the hub, and it says what somebody who finds the dataset has to know."""

import asyncio
import json
from pathlib import Path

import pytest
import yaml
from huggingface_hub import DatasetCard

from stillhouse.dataset.card import describe_label_error, render_card
from stillhouse.labelling.engine import label
from stillhouse.recipe.label import SoftSettings
from tests.conftest import MakeRecipe
from tests.dataset.made import SAMPLED, TEACHER, TOP_K, completion, make_dataset


def labelled_card(recipe: MakeRecipe, tmp_path: Path, licence: str | None) -> str:
    dataset = {"root": str(tmp_path / "labels"), "name": "words", "licence": licence}
    quality = [{"kind": "finish-reason"}, {"kind": "regex", "pattern": "elbow|tram", "reject": True}]
    made = asyncio.run(label(recipe(dataset=dataset, quality=quality))).dataset
    return (made.folder / "README.md").read_text(encoding="utf-8")


def test_the_front_matter_is_what_the_hub_takes(scripted_recipe: MakeRecipe, tmp_path: Path) -> None:
    card = DatasetCard(labelled_card(scripted_recipe, tmp_path, "Apache-2.0"))
    front = card.data.to_dict()
    assert front["license"] == "apache-2.0"
    assert front["size_categories"] == ["n<1K"]
    assert front["configs"][0]["data_files"][0] == {"split": "train", "path": "data/train-*.parquet"}
    assert front["task_categories"] == ["text-generation"]
    assert yaml.safe_load(str(card.data)) == front


def test_a_published_card_says_what_was_left_out_and_what_it_is_not_for(
    scripted_recipe: MakeRecipe, tmp_path: Path
) -> None:
    text = labelled_card(scripted_recipe, tmp_path, None)
    front = DatasetCard(text).data.to_dict()
    assert "license" not in front
    for part in (
        "kind scripted",
        "regex (pattern elbow|tram, reject true)".replace("|", "\\|"),
        "temperature 0.7",
        "top-k, k = 8",
        "is at most 7.65e-05 nats",
        "## Limitations",
        "teacher's licence",
        "not set (`dataset.licence` in the recipe)",
        "load_dataset(",
        "-- DuckDB",
        "polars.read_parquet",
        "from trl import",
    ):
        assert part in text, part
    assert str(tmp_path) not in text, "a published card must not name folders of the machine"
    assert "words.jsonl" in text


def test_rejections_by_stage_and_reason(scripted_recipe: MakeRecipe, tmp_path: Path) -> None:
    recipe = scripted_recipe(quality=[{"kind": "length", "max_tokens": 1}], label={"max_rejected": 1})
    made = asyncio.run(label(recipe)).dataset
    assert "| quality | length | 12 |" in (made.folder / "README.md").read_text()


@pytest.mark.parametrize("soft", [None, TOP_K, SAMPLED])
def test_a_derived_version_names_its_parents(tmp_path: Path, soft: SoftSettings | None) -> None:
    made = make_dataset(tmp_path, "words", [completion("kettle", soft=soft)], soft=soft, parents=["a/v001", "b/v002"])
    text = (made.folder / "README.md").read_text()
    assert "| Parents | a/v001, b/v002 |" in text
    assert "revision main" in text
    assert ("sampled_token_ids" in text) == (soft == SAMPLED)
    assert ("top_logprobs" in text) == (soft == TOP_K)
    assert ("same tokenizer" in text) == (soft is not None)


def test_what_others_wrote_breaks_no_table(tmp_path: Path) -> None:
    from dataclasses import replace

    teacher = replace(TEACHER, model="evil`|<script>\n---\nlicense: mit")
    made = make_dataset(tmp_path, "words", [completion("kettle")], teacher=teacher, licence='x"\nevil: true')
    text = (made.folder / "README.md").read_text()
    front = DatasetCard(text).data.to_dict()
    assert "evil" not in front and front["license"] == 'x"\nevil: true'
    assert "<script>" not in text.split("---\n", 2)[2]


@pytest.mark.parametrize(
    ("rows", "category"), [(999, "n<1K"), (1000, "1K<n<10K"), (99_999, "10K<n<100K"), (2 * 10**12, "n>1T")]
)
def test_size_categories(tmp_path: Path, rows: int, category: str) -> None:
    manifest = make_dataset(tmp_path, "words", [completion("kettle")]).manifest
    card = render_card(manifest.model_copy(update={"rows": {"train": rows}}))
    assert DatasetCard(card).data.to_dict()["size_categories"] == [category]


def test_error_bounds() -> None:
    assert "0.071 at most" in describe_label_error(SoftSettings(encoding="sampled", draws=50))
    assert "32 most likely" in describe_label_error(SoftSettings())


def test_the_recipe_in_the_manifest_is_whole_again(scripted_recipe: MakeRecipe) -> None:
    made = asyncio.run(label(scripted_recipe())).dataset
    assert json.loads((made.folder / "manifest.json").read_text())["recipe"]["name"] == "test"

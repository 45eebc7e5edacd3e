"""What an encoder-decoder labelled: its text goes out as any other, its soft labels stand in no sequence with a prompt."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import pytest

from stillhouse.dataset.manifest import Manifest
from stillhouse.dataset.store import Dataset
from stillhouse.errors import UsageError
from stillhouse.exchange.base import ExportOptions
from stillhouse.exchange.export import export_dataset
from tests.dataset.made import TEACHER, TOP_K, completion, make_dataset


@pytest.fixture
def dataset(tmp_path: Path) -> Dataset:
    teacher = replace(TEACHER, encoder_decoder=True)
    return make_dataset(tmp_path / "labels", "read", [completion("otter", soft=TOP_K)], soft=TOP_K, teacher=teacher)


@pytest.mark.parametrize("to", ["axolotl", "distillkit"])
def test_formats_of_one_sequence_are_refused_and_nothing_is_written(dataset: Dataset, tmp_path: Path, to: str) -> None:
    with pytest.raises(UsageError, match=f"--to is '{to}': the format has prompt and answer in one sequence.* Use trl"):
        export_dataset(dataset, to, tmp_path / "out", ExportOptions())
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize("to", ["trl", "openai", "sharegpt"])
def test_its_text_goes_out(dataset: Dataset, tmp_path: Path, to: str) -> None:
    export_dataset(dataset, to, tmp_path / "out", ExportOptions())
    assert any((tmp_path / "out").iterdir())


def test_its_card_says_so(dataset: Dataset) -> None:
    assert "(kind scripted, an encoder-decoder, revision main)" in (dataset.folder / "README.md").read_text()


def test_manifests_that_do_not_say_are_of_causal_teachers(dataset: Dataset) -> None:
    said = dataset.manifest.model_dump(mode="json")
    assert said["teacher"].pop("encoder_decoder") is True
    assert not Manifest.model_validate_json(json.dumps(said)).teacher.encoder_decoder

"""Hub data sets as prompts: how they are named, and how an error of theirs is told.

The library reads a folder here as it reads a repository of the hub, so that most of this needs no hub.
"""

import json
from pathlib import Path
from typing import Any

import pytest

from stillhouse.errors import PromptError
from stillhouse.prompts.load import read_prompts
from stillhouse.recipe.prompts import PromptSettings

CARD = """---
configs:
- config_name: main
  data_files:
  - {split: train, path: main.jsonl}
  - {split: test, path: test.jsonl}
- config_name: socratic
  data_files: socratic.jsonl
---
"""


@pytest.fixture(autouse=True)
def data_set(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A data set with two configurations, by a name with a dot, below the working folder."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("datasets.config.HF_CACHE_HOME", tmp_path / "cache")
    folder = tmp_path / "org" / "name.v2"
    folder.mkdir(parents=True)
    (folder / "README.md").write_text(CARD)
    for name in ("main", "test", "socratic"):
        (folder / f"{name}.jsonl").write_text(json.dumps({"prompt": f"{name} one"}) + "\n")
    return folder


def texts(**settings: Any) -> list[str]:
    return [prompt.text for prompt in read_prompts(PromptSettings(**settings))]


def refusal(**settings: Any) -> str:
    with pytest.raises(PromptError) as caught:
        texts(**settings)
    assert caught.value.exit_status == 2
    return str(caught.value)


@pytest.mark.parametrize(
    ("more", "text"),
    [
        ({"config": "main"}, "main one"),
        ({"config": "main", "split": "test"}, "test one"),
        ({"config": "socratic"}, "socratic one"),
    ],
)
def test_a_configuration_and_a_split_of_a_data_set_with_a_dot_in_its_name(more: dict[str, str], text: str) -> None:
    assert texts(source="org/name.v2", **more) == [text]


@pytest.mark.parametrize(
    ("more", "words"),
    [
        (
            {},
            "prompts.config is null: the hub data set 'org/name.v2' has several configurations. Set it to one of main",
        ),
        (
            {"config": "mian"},
            "prompts.config is 'mian': the hub data set 'org/name.v2' has no such configuration. Did you mean 'main'?",
        ),
        (
            {"config": "main", "split": "validation"},
            "prompts.split is 'validation': the hub data set 'org/name.v2' has no such split. Choose from: train, test.",
        ),
    ],
)
def test_a_wrong_configuration_or_split_lists_what_there_is(more: dict[str, str], words: str) -> None:
    assert words in refusal(source="org/name.v2", **more)


@pytest.mark.parametrize("source", ["nobody/there.v1", "name-1.5", "squad", "org/set.2024-05-01", "Org_1/data-v0.1.2"])
def test_an_id_that_is_not_there_is_asked_for_at_the_hub(source: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    monkeypatch.setattr("datasets.config.HF_HUB_OFFLINE", True)
    told = refusal(source=source)
    assert told.startswith(
        f"prompts.source is {source!r}: it is not a local file, and cannot be read from the hub (split 'train')"
    )
    assert "Check the network" in told


@pytest.mark.parametrize(
    "source", ["x.xlsx", "org/x.JSON", "a/b/c", "./org", "../x", "/org", "x.jsonl.gz", "org/", "-x"]
)
def test_what_is_a_file_or_no_id_is_not_asked_for(source: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("datasets.load_dataset", None)
    assert "Use a .jsonl, .csv, .tsv or .parquet file" in refusal(source=source)


def test_a_file_here_is_never_asked_for_at_the_hub(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("datasets.load_dataset", None)
    (tmp_path / "words.v2").write_text("{}")
    assert "Use a .jsonl, .csv, .tsv or .parquet file" in refusal(source="words.v2")
    (tmp_path / "p.jsonl").write_text('{"prompt": "a"}\n')
    assert "only hub data sets have configurations" in refusal(source="p.jsonl", config="main")


def test_a_row_that_the_library_cannot_read(data_set: Path) -> None:
    (data_set / "socratic.jsonl").write_text('{"prompt": "a"}\n{"prompt": {"deep')
    assert "(split 'train', config 'socratic')" in refusal(source="org/name.v2", config="socratic")


@pytest.mark.parametrize(
    ("error", "fix"),
    [
        (
            FileNotFoundError("Dataset 'org/x' is a gated dataset on the Hub. Ask hf_secret for access."),
            "Request access",
        ),
        (RuntimeError("Dataset scripts are no longer supported"), "Check the id"),
        (TimeoutError(), "TimeoutError"),
        (KeyError("features"), "KeyError"),
    ],
)
@pytest.mark.parametrize("late", [False, True], ids=["at once", "while it is read"])
def test_whatever_the_library_raises_names_the_setting(
    monkeypatch: pytest.MonkeyPatch, error: Exception, fix: str, late: bool
) -> None:
    def load(*_: Any, **__: Any) -> Any:
        if not late:
            raise error

        def rows() -> Any:
            yield {"prompt": "a"}
            raise error

        return rows()

    monkeypatch.setenv("HF_TOKEN", "hf_secret")
    monkeypatch.setattr("datasets.load_dataset", load)
    told = refusal(source="org/x")
    assert told.startswith("prompts.source is 'org/x': ") and "(split 'train')" in told
    assert fix in told
    assert "hf_secret" not in told

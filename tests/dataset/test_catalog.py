"""The catalog and its commands as a person types them: list, merge, filter, split, verify, rm."""

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from typer.testing import CliRunner

from stillhouse.cli.main import app
from stillhouse.dataset import catalog as catalog_module
from stillhouse.dataset.catalog import catalog, find_versions, remove
from stillhouse.dataset.listing import catalog_lines
from stillhouse.dataset.manifest import FILE_NAME
from stillhouse.dataset.store import Dataset, all_datasets
from stillhouse.errors import DatasetBusy, DatasetMissing, DatasetRefused, UsageError
from stillhouse.storage.durable import write_lock
from tests.dataset.made import SAMPLED, TOP_K, completion, make_dataset


@pytest.fixture
def root(tmp_path: Path) -> Path:
    return tmp_path / "labels"


def datasets(root: Path, *arguments: object) -> Any:
    """Run `stillhouse datasets` in this process."""
    return CliRunner().invoke(app, ["datasets", *map(str, arguments), "--root", str(root)])


def folder_of(dataset: Dataset) -> Path:
    assert isinstance(dataset.folder, Path)
    return dataset.folder


@pytest.fixture
def three(root: Path) -> list[Dataset]:
    one = make_dataset(root, "one", [completion("kettle", soft=TOP_K)], [completion("tram", soft=TOP_K)], soft=TOP_K)
    two = make_dataset(root, "two", [completion("otter", soft=SAMPLED)], soft=SAMPLED)
    child = make_dataset(root, "child", [completion("otter")], parents=["one/v001"], licence="mit")
    return [one, two, child]


# ------------------------------------------------------------------------------------------------------------------ list


def test_a_list_that_fits_eighty_columns(root: Path, three: list[Dataset]) -> None:
    lines = catalog_lines(catalog(root), 80)
    assert max(map(len, lines)) <= 80
    text = "\n".join(lines)
    for part in ("child/v001", "top-k 4", "sampled 8", "text", "$0.00", "import, teacher-a, from one/v001"):
        assert part in text


def test_the_list_for_programs(root: Path, three: list[Dataset]) -> None:
    done = datasets(root, "list", "--json")
    listed = {one["dataset"]: one for one in json.loads(done.stdout)["datasets"]}
    assert list(listed) == ["child/v001", "one/v001", "two/v001"]
    assert listed["one/v001"]["soft"] == {"encoding": "top-k", "k": 4}
    assert listed["one/v001"]["rows"] == {"train": 1, "validation": 1}
    assert listed["child/v001"]["parents"] == ["one/v001"]
    assert listed["one/v001"]["bytes"] == sum(
        path.stat().st_size for path in (root / "one/v001").rglob("*") if path.is_file()
    )


@pytest.mark.parametrize(
    ("damage", "words"),
    [
        (lambda folder: (folder / FILE_NAME).write_text("{"), "is not valid JSON"),
        (lambda folder: (folder / FILE_NAME).write_text('{"format_version": 9}'), "format version 9"),
        (lambda folder: next((folder / "data").iterdir()).unlink(), "is missing"),
        (lambda folder: next((folder / "data").iterdir()).write_text("cut"), "has 3 bytes"),
    ],
)
def test_a_damaged_version_is_listed_as_damaged(root: Path, three: list[Dataset], damage: Any, words: str) -> None:
    damage(folder_of(three[0]))
    done = datasets(root, "list")
    assert done.exit_code == 0, done.output
    said = " ".join(done.stdout.split())
    assert "DAMAGED" in said and words in said
    assert "two/v001" in said and "child/v001" in said
    assert [one.damage is not None for one in catalog(root)] == [False, True, False]
    assert json.loads(datasets(root, "list", "--json").stdout)["datasets"][1]["damage"]


def test_nothing_there(root: Path) -> None:
    assert "no finished dataset" in datasets(root, "list").stdout
    assert json.loads(datasets(root, "list", "--json").stdout) == {"datasets": []}


# -------------------------------------------------------------------------------------------------------------- commands


def test_merge_filter_and_split_say_what_they_did(root: Path, three: list[Dataset]) -> None:
    refused = datasets(root, "merge", "one", "two", "--into", "both")
    assert refused.exit_code == 1
    assert "--text-only" in refused.stderr
    merged = datasets(root, "merge", "one", "two", "child", "--into", "both", "--text-only")
    assert merged.exit_code == 0, merged.output
    assert "both/v001: 2 train, 1 validation" in merged.stdout
    assert "1 row left out" in merged.stdout
    kept = json.loads(
        datasets(root, "filter", "both", "--where", "prompt_text = 'otter'", "--into", "few", "--json").stdout
    )
    assert (kept["dataset"], kept["rows"], kept["parents"]) == ("few/v001", {"train": 1}, ["both/v001"])
    assert kept["counts"] == {"rows_read": 3, "kept": 1, "unknown": 0}
    assert datasets(root, "split", "both", "--validation", "0.05", "--into", "both").exit_code == 0
    assert [one.label for one in catalog(root)][:2] == ["both/v001", "both/v002"]
    for name in ("both/v001", "both", "few"):
        assert datasets(root, "verify", name).exit_code == 0


@pytest.mark.parametrize(
    ("arguments", "status", "words"),
    [
        (["filter", "one", "--where", "tokens < 2", "--into", "x"], 2, "the column 'tokens' does not exist"),
        (["filter", "one", "--where", "sample > 9", "--into", "x"], 2, "Nothing was written"),
        (["filter", "one", "--where", "true", "--into", "../x"], 2, "--into is '../x'"),
        (["filter", "nobody", "--where", "true", "--into", "x"], 1, "finished datasets: child/v001"),
        (["split", "one", "--validation", "1.5", "--into", "x"], 2, "--validation is 1.5"),
        (["merge", "one", "--into", "x"], 2, "two or more"),
        (["rm", "one/v001", "--yes"], 1, "is a parent of child/v001"),
        (["rm", "one/v007", "--yes"], 1, "one/v007 does not exist"),
        (["rm", "tow/v001", "--yes"], 1, "Did you mean"),
        (["rm", "../one", "--yes"], 2, "is not a valid name of a dataset"),
        (["rm", "two"], 2, "Add --yes"),
        (["rm", "two/v001", "--all", "--yes"], 2, "is one version"),
    ],
)
def test_bad_input_is_told_and_nothing_changes(
    root: Path, three: list[Dataset], arguments: list[str], status: int, words: str
) -> None:
    before = sorted(root.rglob("*"))
    done = datasets(root, *arguments)
    assert done.exit_code == status, done.output
    assert words in " ".join(done.stderr.split())
    assert done.stdout == ""
    assert [path for path in sorted(root.rglob("*")) if path.name != ".lock"] == [
        path for path in before if path.name != ".lock"
    ]


def test_verify_names_what_is_wrong(root: Path, three: list[Dataset]) -> None:
    (folder_of(three[1]) / "README.md").write_text("mine")
    done = datasets(root, "verify", "two")
    assert done.exit_code == 1
    assert "README.md has 4 bytes" in done.stderr
    assert json.loads(datasets(root, "verify", "two", "--json").stdout)["problems"]


def test_a_corrected_import_is_merged_with_its_original(root: Path, tmp_path: Path) -> None:
    for number, answer in enumerate(("wrong [/x]", "right")):
        file = tmp_path / f"answers-{number}.jsonl"
        rows = [("kettle", answer), ("otter", "An animal.")]
        lines = [[{"role": "user", "content": one}, {"role": "assistant", "content": two}] for one, two in rows]
        file.write_text("".join(json.dumps({"messages": line}) + "\n" for line in lines))
        command = ["import", "openai", file, "--into", "words", "--teacher", "a-model", "--validation", "0"]
        assert datasets(root, *command).exit_code == 0
    command = ["merge", "words/v001", "words/v002", "--into", "both"]
    told = datasets(root, *command)
    assert told.exit_code == 0 and "1 prompt with differing answers" in told.stdout
    assert "words/v001 has 'wrong [/x]', words/v002 has 'right'" in told.stdout
    result = json.loads(datasets(root, *command, "--prefer", "words@v002", "--json").stdout)
    assert result["differing"] == {
        "prompts": 1,
        "examples": [{"prompt": "kettle", "answers": {"words/v001": "wrong [/x]", "words/v002": "right"}}],
    }
    (batch,) = all_datasets(root)[1].batches("train")
    assert sorted(turns[0]["content"] for turns in batch.column("completion").to_pylist()) == ["An animal.", "right"]
    refused = datasets(root, *command, "--prefer", "[/x]")
    assert (refused.exit_code, "--prefer is '[/x]'" in refused.stderr) == (2, True)


# -------------------------------------------------------------------------------------------------------------------- rm


def test_a_version_is_removed_children_first(root: Path, three: list[Dataset]) -> None:
    assert datasets(root, "rm", "child", "--yes").exit_code == 0
    done = datasets(root, "rm", "one", "--yes", "--json")
    assert json.loads(done.stdout)["removed"] == ["one/v001"]
    assert [one.label for one in catalog(root)] == ["two/v001"]
    assert not (root / "one/v001").exists()


def test_several_versions_are_removed_only_when_that_is_said(root: Path) -> None:
    make_dataset(root, "words", [completion("kettle")])
    make_dataset(root, "words", [completion("otter")], parents=["words/v001"])
    with pytest.raises(UsageError, match="words/v001, words/v002. Name one of them, or remove all of them with --all"):
        find_versions(root, "words")
    with pytest.raises(DatasetRefused, match="parent of words/v002"):
        remove(root, find_versions(root, "words/v001"))
    remove(root, find_versions(root, "words", every=True))
    assert catalog(root) == []


def test_a_run_that_holds_the_dataset_keeps_it(root: Path, three: list[Dataset]) -> None:
    hold = (
        "import sys; from pathlib import Path; from stillhouse.storage.durable import write_lock\n"
        "with write_lock(Path(sys.argv[1])): print('held', flush=True); sys.stdin.read()"
    )
    command = [sys.executable, "-c", hold, str(root / "two")]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as run:
        assert run.stdout is not None and run.stdout.readline() == "held\n"
        with pytest.raises(DatasetBusy, match="being written by another run"):
            remove(root, find_versions(root, "two"))
        run.communicate()
    assert all_datasets(root)[-1].problems() == []
    with write_lock(root / "two"):
        pass


def test_a_half_removed_version_does_not_exist(
    root: Path, three: list[Dataset], monkeypatch: pytest.MonkeyPatch
) -> None:
    def cut_off(folder: Path) -> None:
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(catalog_module, "remove_tree", cut_off)
        with pytest.raises(KeyboardInterrupt):
            remove(root, find_versions(root, "two"))
    assert "two/v001" not in [one.label for one in catalog(root)]
    with pytest.raises(DatasetMissing):
        find_versions(root, "two")
    remove(root, find_versions(root, "two/v001"))  # the rest goes when its version is named
    assert not (root / "two/v001").exists()


def test_a_damaged_version_can_be_removed(root: Path, three: list[Dataset]) -> None:
    (folder_of(three[1]) / FILE_NAME).write_text("{")
    assert datasets(root, "rm", "two", "--yes").exit_code == 0
    assert len(catalog(root)) == 2


def test_asked_on_a_terminal(root: Path, three: list[Dataset], monkeypatch: pytest.MonkeyPatch) -> None:
    from stillhouse.cli import datasets as cli_datasets

    monkeypatch.setattr(
        cli_datasets, "sys", type("Terminal", (), {"stdin": type("In", (), {"isatty": lambda self: True})()})
    )
    runner = CliRunner()
    command = ["datasets", "rm", "two", "--root", str(root)]
    no = runner.invoke(app, command, input="n\n")
    assert no.exit_code == 1 and "nothing was removed" in no.stdout
    assert "1 rows" in no.stderr and "Remove for good?" in no.stderr
    assert len(catalog(root)) == 3
    assert runner.invoke(app, command, input="y\n").exit_code == 0
    assert len(catalog(root)) == 2

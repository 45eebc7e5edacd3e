"""A file of a dataset that cannot be read is named by whatever reads it, and nothing else is blamed for it."""

from pathlib import Path

import pytest
from click.testing import Result
from typer.testing import CliRunner

from stillhouse.cli.main import app
from stillhouse.dataset.derive import filter_rows
from stillhouse.dataset.store import Dataset
from stillhouse.errors import DatasetRefused
from stillhouse.exchange.export import export_dataset
from tests.dataset.made import completion, make_dataset


def datasets(root: Path, *arguments: object) -> Result:
    done = CliRunner().invoke(app, ["datasets", *map(str, arguments), "--root", str(root)])
    assert isinstance(done.exception, SystemExit | None), done.exception
    return done


def _no_footer(content: bytes) -> bytes:
    return content[:-9]


def _broken_pages(content: bytes) -> bytes:
    """As many bytes, and a footer that is whole."""
    return content[:4] + b"\xa5" * 3000 + content[3004:]


@pytest.fixture(params=[_no_footer, _broken_pages], ids=["no footer", "broken pages"])
def corrupt(tmp_path: Path, request: pytest.FixtureRequest) -> Dataset:
    dataset = make_dataset(
        tmp_path, "words", [completion(f"word {number}", text="x" * number) for number in range(300)]
    )
    file = tmp_path / "words/v001" / dataset.manifest.files[0].path
    file.write_bytes(request.param(file.read_bytes()))
    return dataset


@pytest.mark.parametrize(
    "command",
    [
        ["export", "words", "--to", "trl", "--out", "out"],
        ["export", "words", "--to", "openai", "--out", "out", "--files", "parquet"],
        ["show", "words"],
        ["show", "words", "--html", "page.html"],
        ["verify", "words"],
        ["push", "words", "--to", "ada/words"],
        ["merge", "words", "other", "--into", "new"],
        ["filter", "words", "--where", "completion_tokens > 1", "--into", "new"],
        ["split", "words", "--validation", "0.5", "--into", "new"],
    ],
    ids=" ".join,
)
def test_the_corrupt_file_is_named(
    tmp_path: Path, corrupt: Dataset, command: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("HF_TOKEN", "hf_none")
    make_dataset(tmp_path, "other", [completion("tram")])
    done = datasets(tmp_path, *command)
    assert done.exit_code == 1, done.output
    assert corrupt.manifest.files[0].path in done.stderr
    assert "cannot be written" not in done.stderr
    assert (
        not (tmp_path / "out").exists()
        and not (tmp_path / "page.html").exists()
        and not (tmp_path / "new/v001").exists()
    )
    assert not list(tmp_path.glob(".out*"))


def test_a_file_that_breaks_after_it_was_checked_is_named_too(
    tmp_path: Path, corrupt: Dataset, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(Dataset, "check", lambda self: None)
    with pytest.raises(DatasetRefused, match=f"{corrupt.manifest.files[0].path} cannot be read"):
        list(corrupt.batches("train"))
    with pytest.raises(DatasetRefused, match="cannot be read"):
        filter_rows(corrupt, tmp_path, "new", "length(completion_text) > 5")


def test_an_export_blames_the_file_that_it_reads(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    dataset = make_dataset(tmp_path, "words", [completion("kettle")])
    file = tmp_path / "words/v001" / dataset.manifest.files[0].path
    monkeypatch.setattr(Dataset, "check", lambda self: file.write_bytes(b"PAR1 and no more"))
    with pytest.raises(DatasetRefused, match=f"{file} cannot be read"):
        export_dataset(dataset, "trl", tmp_path / "out")
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize("broken", [_no_footer, _broken_pages])
def test_a_file_that_is_imported_and_cannot_be_read_is_named(tmp_path: Path, broken: object) -> None:
    make_dataset(tmp_path, "words", [completion(f"word {number}", text="x" * number) for number in range(300)])
    command = ["export", "words", "--to", "trl", "--out", tmp_path / "out", "--files", "parquet"]
    assert datasets(tmp_path, *command).exit_code == 0
    file = tmp_path / "out/train.parquet"
    file.write_bytes(broken(file.read_bytes()))  # type: ignore[operator]
    done = datasets(tmp_path, "import", "trl", file, "--into", "new", "--teacher", "a-model")
    assert done.exit_code in (1, 2)
    assert str(file) in done.stderr and "cannot be written" not in done.stderr
    assert not (tmp_path / "new/v001").exists()

"""What people and servers write is shown as it is: nothing of it is markup on a terminal, and no number breaks JSON."""

import json
import math
from pathlib import Path
from typing import Any

import pytest
from click.testing import Result
from hypothesis import given
from hypothesis import strategies as st
from rich.console import Console
from typer.testing import CliRunner

from stillhouse.cli import terminal
from stillhouse.cli.main import app
from stillhouse.evaluation.report.report import ReportFiles, write_files
from stillhouse.inputs.plain_json import to_json
from stillhouse.records import TokenLogprob
from tests.dataset.made import completion, make_dataset

ODD = ["[/x]", "[bold]", "[red]a[/red]", "a[link=x]b", ":warning:", "[/]", "\\[x]"]
NOT_FINITE = [math.nan, math.inf, -math.inf, 800.0]


def run(*arguments: object) -> Result:
    done = CliRunner().invoke(app, [str(one) for one in arguments])
    assert isinstance(done.exception, SystemExit | None), done.exception
    return done


def strict(text: str) -> Any:
    def refuse(word: str) -> None:
        raise AssertionError(f"{word} is no JSON")

    return json.loads(text, parse_constant=refuse)


@pytest.mark.parametrize("odd", ODD)
def test_names_and_paths_are_told_as_they_were_typed(odd: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    assert f"no finished dataset in {odd}" in run("datasets", "list", "--root", odd).stdout
    for command in (
        ["datasets", "show", odd],
        ["datasets", "verify", odd],
        ["datasets", "rm", odd, "--yes"],
        ["datasets", "filter", odd, "--where", odd, "--into", "new"],
        ["datasets", "export", odd, "--to", "trl", "--out", "out"],
        ["datasets", "import", "trl", odd, "--into", "new"],
        ["datasets", "push", odd, "--to", "a/b"],
        ["plan", f"{odd}.yaml"],
        ["label", f"{odd}.yaml"],
    ):
        done = run(*command)
        assert done.exit_code in (1, 2) and odd.rstrip("/") in done.stderr, (command, done.stderr)
    assert f"the URL s3::{odd}://x is a chain" in run("datasets", "list", "--root", f"s3::{odd}://x").stderr.replace(
        "\n", ""
    )


@pytest.mark.parametrize("odd", ODD)
def test_a_dataset_of_odd_texts_is_shown(odd: str, tmp_path: Path) -> None:
    root = tmp_path / f"labels {odd}"
    make_dataset(root, "words", [completion(odd, text=odd, teacher=odd)], licence=odd)
    shown = run("datasets", "show", "words", "--root", root)
    assert (shown.exit_code, shown.stdout.count(odd) >= 3) == (0, True), shown.output
    assert odd in run("datasets", "merge", "words", root / "words/v001", "--into", odd, "--root", root).stderr
    page = tmp_path / f"{odd.replace('/', '_')}.html"
    assert str(page) in run("datasets", "show", "words", "--root", root, "--html", page).stdout.replace("\n", "")


@pytest.mark.parametrize("odd", ODD)
def test_tables_and_bars_show_texts_as_they_are(odd: str, monkeypatch: pytest.MonkeyPatch) -> None:
    console = Console(width=200, force_terminal=True, color_system=None, markup=False, emoji=False, record=True)
    for name in ("output", "errors"):
        consoles = getattr(terminal, name)
        assert (consoles._markup, consoles._emoji) == (False, False)
        monkeypatch.setattr(terminal, name, console)
    terminal.show_table([odd, "b"], [[odd, odd]])
    terminal.show_pairs([[odd, odd]])
    terminal.show_comparison(["model", "kl"], [[odd, f"{odd} [1, 2]"]])
    with terminal.progress_display() as progress:
        progress(odd, 1, 2)
    assert console.export_text().count(odd) >= 7


@pytest.mark.parametrize("number", NOT_FINITE)
@pytest.mark.parametrize("place", ["token", "alternatives"])
def test_log_probabilities_that_are_none_are_shown(number: float, place: str, tmp_path: Path) -> None:
    own = number if place == "token" else -0.5
    top = (("a", number if place == "alternatives" else -0.5), ("b", -1.5))
    traced = completion("kettle", token_logprobs=(TokenLogprob("a", own, top),))
    make_dataset(tmp_path, "words", [traced])
    page = tmp_path / "page.html"
    done = run("datasets", "show", "words", "--root", tmp_path, "--html", page, "--json")
    assert done.exit_code == 0, done.output
    strict(done.stdout)
    text = page.read_text()
    assert "NaN" not in text.split("<script")[-1] and "nan %" not in text and "inf %" not in text
    assert run("datasets", "show", "words", "--root", tmp_path).exit_code == 0


def test_a_cost_that_is_no_number_breaks_no_manifest(tmp_path: Path) -> None:
    make_dataset(tmp_path, "words", [completion("kettle", cost_usd=math.nan)])
    folder = tmp_path / "words/v001"
    assert strict((folder / "manifest.json").read_text())["totals"]["cost_usd"] is None
    for command in (["list"], ["show", "words"], ["verify", "words"]):
        strict(run("datasets", *command, "--root", tmp_path, "--json").stdout)


def test_a_report_with_numbers_that_are_none_is_written(tmp_path: Path) -> None:
    files = ReportFiles.in_folder(tmp_path)
    write_files(files, "", "", {"recipe": "x", "kl": math.nan, "rows": ({"loss": math.inf},)})
    assert strict(files.json.read_text()) == {"recipe": "x", "kl": None, "rows": [{"loss": None}]}


json_values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(),
    lambda inner: st.lists(inner) | st.dictionaries(st.text(), inner) | st.tuples(inner),
    max_leaves=10,
)


@given(json_values)
def test_every_value_is_json_and_finite_ones_stay(value: Any) -> None:
    text = to_json(value)
    strict(text)
    if "null" not in text:
        assert json.loads(text) == json.loads(json.dumps(value))

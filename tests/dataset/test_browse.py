"""The page of a dataset: in a real browser, with prompts that would like to be more than text."""

import json
import re
from dataclasses import replace
from pathlib import Path

import pytest
from typer.testing import CliRunner

from stillhouse.cli.main import app
from stillhouse.dataset.browse import level, percent, render_page
from stillhouse.dataset.samples import pick_samples
from stillhouse.dataset.statistics import measure_dataset
from stillhouse.dataset.store import Dataset
from stillhouse.dataset.token_texts import TokenTexts
from stillhouse.models.files import ModelFiles
from stillhouse.recipe.label import SoftSettings
from stillhouse.records import Message, Prompt, TokenLogprob
from tests.dataset.chromium import Page, open_page
from tests.dataset.made import SAMPLED, TEACHER, TOP_K, completion, make_dataset

EVIL = (
    "</script><script>document.title='owned'</script><img src=https://example.org/x onerror=\"document.title='owned'\">"
)


@pytest.fixture
def page_file(tmp_path: Path, tiny_model: Path) -> Path:
    """A page of a dataset whose every text is an attack, with the tiny model's tokens."""
    digest = ModelFiles(str(tiny_model), tiny_model).tokenizer_sha256
    teacher = replace(TEACHER, model=str(tiny_model), tokenizer_sha256=digest)
    rows = [
        replace(
            completion(word, 40, soft=TOP_K, text=EVIL, reasoning=EVIL),
            prompt=Prompt((Message("user", f"{word} {EVIL}"),), EVIL),
        )
        for word in ("kettle", "otter")
    ]
    make_dataset(tmp_path / "labels", "words", rows, soft=TOP_K, teacher=teacher, licence=EVIL)
    return written(tmp_path)


def written(tmp_path: Path, *more: str) -> Path:
    file = tmp_path / "page.html"
    command = ["datasets", "show", "words", "--root", str(tmp_path / "labels"), "--html", str(file), *more]
    done = CliRunner().invoke(app, command)
    assert done.exit_code == 0, done.output
    return file


def tip(page: Page) -> str:
    """What is shown of a token once scrolling has come to rest; nothing while it is hidden."""
    page.value("new Promise(done => setTimeout(done, 100))")
    shown: str = page.value("document.getElementById('tip').hidden ? '' : document.getElementById('tip').innerText")
    return shown


def test_the_page_names_no_address(page_file: Path) -> None:
    text = page_file.read_text()
    without = text.replace("https://example.org/x", "")  # of the prompts, escaped
    assert re.findall(r"(?:https?:)?//[a-z].*", without) == []
    assert "<img" not in text
    assert text.count("<script") == 2  # the tokens and the page's own
    assert "default-src &#39;none&#39;" in text


def test_hovering_shows_the_alternatives_and_nothing_leaves(page_file: Path) -> None:
    with open_page(page_file) as page:
        assert page.value("document.title") == "words/v001 – Stillhouse dataset"
        assert page.value("document.querySelectorAll('.t').length") == 80
        assert page.value("document.querySelectorAll('svg').length") == 2
        assert tip(page) == ""
        page.hover(*page.place(".t", 5))
        shown = tip(page)
        for part in ("50.0 %", "24.9 %", "12.5 %", "6.2 %", "all others", "entropy 1.3"):
            assert part in shown, shown
        assert page.value("document.querySelectorAll('#tip li').length") == 5
        page.hover(2, 2)
        assert tip(page) == ""
        assert page.errors == []
        assert [url for url in page.requests if not url.startswith(("file:", "data:"))] == []
        assert page.value("document.title") == "words/v001 – Stillhouse dataset"


def test_the_keyboard_goes_from_token_to_token(page_file: Path) -> None:
    with open_page(page_file, dark=True) as page:
        page.press("Tab")
        first = tip(page)
        assert "50.0 %" in first
        page.press("ArrowRight")
        assert tip(page) not in ("", first)
        assert page.value("document.activeElement.dataset.t") == "1"
        assert page.value("document.activeElement.getAttribute('aria-describedby')") == "tip"
        page.press("End")
        assert page.value("document.activeElement.dataset.t") == "39"
        page.press("Escape")
        assert tip(page) == ""
        page.press("Tab")  # each completion is one stop
        assert page.value("document.activeElement.dataset.s") == "1"
        assert page.errors == []


def test_a_phone(page_file: Path) -> None:
    with open_page(page_file, width=390, height=844, touch=True) as page:
        assert page.value("document.documentElement.scrollWidth") <= 390
        page.tap(*page.place(".t", 30))
        assert "50.0 %" in tip(page)
        box = page.value("JSON.stringify(document.getElementById('tip').getBoundingClientRect())")
        assert json.loads(box)["left"] == 0 and json.loads(box)["right"] == 390
        token = page.value("document.querySelector('.t.open').getBoundingClientRect().bottom")
        assert token <= json.loads(box)["top"], "the token is hidden by what is shown of it"
        assert page.errors == []


@pytest.mark.parametrize("soft", [None, SAMPLED])
def test_other_labels(tmp_path: Path, soft: SoftSettings | None) -> None:
    make_dataset(tmp_path / "labels", "words", [completion("kettle", soft=soft)], soft=soft)
    text = written(tmp_path).read_text()
    assert ("This dataset has no log-probabilities" in text) == (soft is None)
    assert ("of the frequencies of 8 draws" in text) == (soft == SAMPLED)
    assert ("tokens are shown as ids" in text) == (soft is not None)
    assert 'class="t ' in text or soft is None
    assert "A kettle is a thing." in text or soft is not None


def test_tokens_that_an_api_named_by_text(tmp_path: Path) -> None:
    named = (TokenLogprob("A", -0.1, (("A", -0.1), ("<u>", -2.5))), TokenLogprob(" kettle", -1.0, ()))
    made = make_dataset(tmp_path, "words", [completion("kettle", token_logprobs=named)])
    texts = TokenTexts(None, "")
    samples = pick_samples(made, 5, texts)
    assert samples[0].tokens is not None
    assert [one.text for one in samples[0].tokens[0].alternatives] == ["A", "<u>"]
    page = render_page(made, samples, measure_dataset(made), {}, 0, "")
    assert 'class="t ' in page and "<u>" not in page


def test_an_empty_dataset_has_a_page(tmp_path: Path) -> None:
    made = make_dataset(tmp_path, "words", [completion("kettle")])
    empty = Dataset(made.folder, made.manifest.model_copy(update={"files": (), "rows": {}}))
    page = render_page(empty, pick_samples(empty, 5, TokenTexts(None, "")), measure_dataset(empty), {}, 0, "")
    assert "No rows." in page


def test_colours_and_percents() -> None:
    assert [level(value) for value in (0, 0.09, 0.1, 0.7, 1.2, 2, 9)] == [0, 0, 1, 2, 3, 4, 5]
    assert [percent(value) for value in (0, 0.0001, 0.01234, 1)] == ["0.0 %", "< 0.1 %", "1.2 %", "100.0 %"]

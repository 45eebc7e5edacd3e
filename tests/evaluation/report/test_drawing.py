"""Plots on a page: the same bytes each time, in the page's colours, and nothing that a name could break."""

import dataclasses
import re
import warnings
from collections import Counter
from itertools import pairwise
from pathlib import Path

import matplotlib
import pytest
from hypothesis import given
from hypothesis import strategies as st

from stillhouse.evaluation.report import plots
from stillhouse.evaluation.report.report import html
from stillhouse.evaluation.results import Curve, Interval, MetricColumn
from stillhouse.evaluation.sweep.report import sweep_html
from tests.dataset.chromium import open_page
from tests.evaluation.report.test_importance_plot import DEEP, INFLUENCE, ONE
from tests.evaluation.report.test_report import TASK
from tests.evaluation.reports import plots_in, row, texts, with_copy
from tests.evaluation.sweep import test_report as sweeps

FULL = dataclasses.replace(with_copy(TASK, Interval(1.95, 1.85, 2.05)), starts=(ONE, DEEP, INFLUENCE))
PAGES = {
    "report": html(FULL),
    "sweep": sweep_html(
        sweeps.with_looks(sweeps.report(sweeps.EXACT, sweeps.ERRORS), s1=sweeps.BROKEN, s2=sweeps.RUNS_ON)
    ),
}


def test_the_same_report_is_the_same_page() -> None:
    assert html(FULL) == PAGES["report"]


@pytest.mark.parametrize("page", PAGES.values(), ids=PAGES)
def test_ids_are_those_that_are_referred_to_and_unique(page: str) -> None:
    ids = Counter(re.findall(r'\bid="([^"]*)"', page))
    assert {*ids.values()} == {1}
    assert {*ids} == {*re.findall(r'(?:href="|url\()#(\w+)', page)}


@pytest.mark.parametrize("page", PAGES.values(), ids=PAGES)
def test_plots_have_the_colours_of_the_page_alone(page: str) -> None:
    found = plots_in(page)
    assert len(found) == page.count('role="img" aria-label="') == page.count("<figure") - page.count("<table") + 1
    styles = "; ".join(element.get("style", "") for plot in found for element in plot.iter())
    assert {*re.findall(r"(?:fill|stroke): ([^;]*)", styles)} <= {
        "none", *(f"var(--{name})" for name in re.findall(r"--([a-z0-9]+):", page))
    }  # fmt: skip
    assert "#" not in re.sub(r"url\(#\w+\)", "", styles)
    assert "font-family" not in styles
    assert page.count("<style") == 1


def test_the_settings_of_the_user_neither_shape_a_plot_nor_are_changed(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(matplotlib.rcParams, "font.size", 31.0)
    monkeypatch.setitem(matplotlib.rcParams, "text.usetex", True)
    before, backend = dict(matplotlib.rcParams), matplotlib.get_backend(auto_select=False)
    assert html(FULL) == PAGES["report"]
    assert dict(matplotlib.rcParams) == before
    assert matplotlib.get_backend(auto_select=False) == backend


SHORT = ["$x^2$ & \\frac", "<b>&amp;</b>", "\\$5", "日本語 🙂", '" onload="x', "url(#m1) #000001"]
NAMES = [*SHORT, "nul\0 esc\x1b[0m", "W" * 200, "", "two\nlines"]


def test_names_are_shown_as_they_are() -> None:
    rows = [
        dataclasses.replace(row(name, 10**6, Interval(1, 0.9, 1.1)), scores={"m": Interval(1, 0.9, 1.1)})
        for name in NAMES
    ]
    metric = MetricColumn("a $x$ <metric>", lower_is_better=False, percent=False, digits=1)
    worth = Interval(1, 0.9, 1.1)
    rows = [dataclasses.replace(row(name, 10**6, worth), scores={metric.name: worth}) for name in NAMES]
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        distance, score, kl = (
            plots_in(svg)[0]
            for svg in (plots.size_and_distance(rows), plots.size_and_score(rows, metric), plots.intervals(rows))
        )
    for plot in (distance, score):
        shown = " ".join(text for text, _ in texts(plot))
        for name in (
            "$x^2$ & \\frac",
            "<b>&amp;</b>",
            "\\$5",
            "日本語 🙂",
            "nul\ufffd esc\ufffd[0m",
            '" onload="x',
            "url(#m1) #000001",
        ):
            assert name in shown
            assert name in plot.get("aria-label", "")
        assert not {"b", "script"} & {element.tag for element in plot.iter()}
        assert not any("onload" in element.attrib for element in plot.iter())
    assert "a $x$ <metric> (higher is better)" in [text for text, _ in texts(score)]
    assert "W" * 43 + "…" in [text for text, _ in texts(kl)]


@pytest.mark.parametrize(
    ("loss", "evaluation", "reached"),
    [((), (1.5,), "1.50"), ((2.0,), (), "2.00"), ((float("nan"), 0.5), (), "0.50"), ((-1.0, -2.0), (), "-2.00")],
)
def test_losses_of_any_kind_are_drawn(loss: tuple[float, ...], evaluation: tuple[float, ...], reached: str) -> None:
    curve = Curve("student", tuple(range(len(loss))), loss, tuple(range(len(evaluation))), evaluation)
    (plot,) = plots_in(plots.loss_plot(curve, 0))
    assert f"to {reached} in" in plot.get("aria-label", "")


@given(st.lists(st.tuples(st.floats(0, 1), st.floats(0.01, 0.1)), min_size=1, max_size=10))
def test_labels_are_in_order_apart_and_inside(labels: list[tuple[float, float]]) -> None:
    wanted, heights = zip(*labels, strict=True)
    found = plots.spread_labels(wanted, heights)
    order = sorted(range(len(labels)), key=lambda place: found[place])
    assert [wanted[place] for place in order] == sorted(wanted)
    for lower, upper in pairwise(order):
        assert found[upper] - found[lower] >= (heights[upper] + heights[lower]) / 2 - 1e-9
    assert found[order[0]] >= heights[order[0]] / 2 - 1e-9
    assert found[order[-1]] <= 1 - heights[order[-1]] / 2 + 1e-9


def test_labels_with_room_are_beside_their_marks_and_others_around_them() -> None:
    assert plots.spread_labels([0.5, 0.9], [0.1, 0.1]) == pytest.approx([0.5, 0.9])
    assert plots.spread_labels([0.5, 0.5, 0.5], [0.1, 0.1, 0.1]) == pytest.approx([0.6, 0.5, 0.4])


@pytest.mark.parametrize("name", PAGES)
@pytest.mark.parametrize("width", [390, 1280])
def test_texts_can_be_read_and_none_lies_on_another(name: str, width: int, tmp_path: Path) -> None:
    (tmp_path / "page.html").write_text(PAGES[name])
    with open_page(tmp_path / "page.html", width=width, touch=width < 500) as page:
        found = page.value(
            "[...document.querySelectorAll('.plot')].map(e => [e, ...e.querySelectorAll('text')].map(t => {"
            " const r = t.getBoundingClientRect(); return [r.left, r.right, r.top, r.bottom]; }))"
        )
        assert len(found) == len(plots_in(PAGES[name]))
        for frame, *boxes in found:
            for left, right, top, bottom in boxes:
                assert frame[0] <= left < right <= frame[1]
                assert frame[2] <= top < bottom <= frame[3]
            for number, one in enumerate(boxes):
                for other in boxes[number + 1 :]:
                    apart = one[1] <= other[0] or other[1] <= one[0] or one[3] <= other[2] + 2 or other[3] <= one[2] + 2
                    assert apart, (one, other)
        scale = page.value("document.querySelector('.plot').getBoundingClientRect().width") / 420
        assert 9.5 <= 13 * scale <= 16  # pixels of a text
        inside = page.value("document.documentElement.clientWidth")
        assert page.value("document.documentElement.scrollWidth") <= inside <= width
        assert page.errors == []

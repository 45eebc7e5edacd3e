"""The plot of what layers are worth: its bars are the scores, and what was left out can be told without its colour."""

import dataclasses
import re
from pathlib import Path

import pytest
from pydantic import TypeAdapter

from stillhouse.evaluation.report.importance_plot import TITLE, bar_chart, explanation, layer_importance, summary_line
from stillhouse.evaluation.report.report import as_json, html, markdown, write_report
from stillhouse.evaluation.results import LayerImportance, Report
from stillhouse.student.start.record import StackStart, Start
from tests.dataset.chromium import open_page
from tests.evaluation.reports import SEPARATE

SCORES = (8.34, 3.295, 1.061, 0.245, 0.137, 0.118, 0.694, 0.4, 2.845, 0.0)
STACK = StackStart(stack="model", depth=10, kept=(0, 1, 2, 6, 7, 8), method="leave-one-out", scores=SCORES)
START = Start(teacher="t", dataset="words/v001", rows=64, stacks=(STACK,))
(ONE,) = layer_importance(START)
DEEP = dataclasses.replace(ONE, stack="encoder", kept=tuple(range(0, 80, 2)), scores=SCORES * 8)
INFLUENCE = dataclasses.replace(
    ONE, stack="decoder", method="block-influence", unit="block influence", scores=SCORES[::-1]
)
_BAR = re.compile(
    r'<rect class="layer (\w+)" x="([\d.]+)" y="([\d.]+)" width="([\d.]+)" height="([\d.]+)"><title>layer (\d+): (\S+)'
)


def drawn(one: LayerImportance) -> list[tuple[str, float, int, str]]:
    """Kind, height, layer and figure of each bar."""
    return [
        (kind, float(height), int(layer), figure) for kind, *_, height, layer, figure in _BAR.findall(bar_chart(one))
    ]


def test_bars_are_the_square_roots_of_the_scores_from_layer_0() -> None:
    found = drawn(ONE)
    assert [layer for _, _, layer, _ in found] == [*range(10)]
    assert [figure for *_, figure in found] == [f"{score:.3g}" for score in SCORES]
    full = found[0][1]
    for (_, height, _, _), score in zip(found[:-1], SCORES, strict=False):
        assert height == pytest.approx(full * (score / 8.34) ** 0.5, abs=0.1)
    assert found[-1][1] == 1.5  # worth nothing, and there


def test_bars_of_layers_that_were_left_out_are_empty() -> None:
    assert [layer for kind, _, layer, _ in drawn(ONE) if kind == "kept"] == [*ONE.kept]
    assert [layer for kind, _, layer, _ in drawn(ONE) if kind == "gone"] == [3, 4, 5, 9]
    page = html(dataclasses.replace(SEPARATE, starts=(ONE,)))
    assert "svg .layer.gone { fill: none; }" in page
    assert ">kept</text>" in page
    assert ">removed</text>" in page


def test_layers_that_are_worth_nothing_at_all_are_drawn() -> None:
    nothing = dataclasses.replace(ONE, scores=(0.0, -1e-9, 0.0), kept=(0,))
    assert [height for _, height, _, _ in drawn(nothing)] == [1.5] * 3


def test_only_layers_that_were_measured_are_shown() -> None:
    assert layer_importance(None) == ()
    assert layer_importance(Start(teacher="t")) == ()
    even = StackStart(stack="encoder", depth=4, kept=(0, 3))
    influence = StackStart(stack="decoder", depth=2, kept=(1,), method="block-influence", scores=(0.1, 0.5))
    (shown,) = layer_importance(Start(teacher="t", rows=3, stacks=(even, influence)))
    assert (shown.stack, shown.unit, shown.kept, shown.scores) == ("decoder", "block influence", (1,), (0.1, 0.5))


def test_the_words_say_what_was_kept_how_and_on_what() -> None:
    assert explanation(ONE) == (
        "Kept: 6 of the teacher's 10 layers (0, 1, 2, 6, 7, 8). They are the layers whose removal costs most. A bar is the "
        "KL to the whole teacher if only that layer is removed, in nats per token, measured on 64 rows of words/v001."
    )
    assert explanation(dataclasses.replace(ONE, method="greedy")).startswith(
        "Kept: 6 of the teacher's 10 layers (0, 1, 2, 6, 7, 8). They were chosen by greedy removal"
    )
    assert explanation(INFLUENCE).startswith(
        "Kept: 6 of the teacher's 10 decoder layers (0, 1, 2, 6, 7, 8). They are the layers"
    )
    assert explanation(INFLUENCE).endswith("its input and output, measured on 64 rows of words/v001.")
    assert summary_line(ONE).startswith(
        "Layers kept: 0, 1, 2, 6, 7, 8 of 10 (leave-one-out on 64 rows of words/v001, nats per token if removed: 0: 8.34,"
    )
    assert summary_line(INFLUENCE).startswith(
        "Decoder layers kept: 0, 1, 2, 6, 7, 8 of 10 (block influence on 64 rows of words/v001: 0: 0, 1: 2.85,"
    )


def test_reports_have_the_layers_in_all_three_forms() -> None:
    report = dataclasses.replace(SEPARATE, starts=(DEEP, INFLUENCE))
    page, text = html(report), markdown(report)
    assert f"<h2>{TITLE}</h2>" in page
    assert page.count('class="about"') == 2
    assert all(summary_line(one) in text and explanation(one).replace("'", "&#39;") in page for one in report.starts)
    assert TypeAdapter(Report).validate_python(as_json(report)) == report


def test_a_report_without_layers_that_were_measured_says_nothing_of_them() -> None:
    assert TITLE not in html(SEPARATE)
    assert TITLE not in markdown(SEPARATE)
    older = as_json(SEPARATE)
    del older["starts"]
    assert TypeAdapter(Report).validate_python(older) == SEPARATE


@pytest.mark.parametrize("width", [390, 1280])
def test_no_text_lies_on_another_at_any_width(width: int, tmp_path: Path) -> None:
    report = dataclasses.replace(SEPARATE, starts=(ONE, DEEP, INFLUENCE))
    with open_page(write_report(report, tmp_path).html, width=width, touch=width < 500) as page:
        found = page.value(
            "[...document.querySelectorAll('svg')].filter(e => e.querySelector('.layer')).map(e => "
            "[[e, ...e.querySelectorAll('text')].map(t => { const r = t.getBoundingClientRect();"
            " return [r.left, r.right, r.top, r.bottom]; }), e.querySelectorAll('.layer').length])"
        )
        assert [count for _, count in found] == [12, 82, 12]  # with two in the legend
        for (frame, *texts), _ in found:
            for left, right, top, bottom in texts:
                assert frame[0] <= left < right <= frame[1]
                assert frame[2] <= top < bottom <= frame[3]
            for number, one in enumerate(texts):
                for other in texts[number + 1 :]:
                    apart = one[1] <= other[0] or other[1] <= one[0] or one[3] <= other[2] or other[3] <= one[2]
                    assert apart, (one, other)
        inside = page.value("document.documentElement.clientWidth")
        assert page.value("document.documentElement.scrollWidth") <= inside <= width
        assert page.errors == []

"""The plot of what layers are worth: its bars are the scores, and what was left out can be told without its colour."""

import dataclasses
import re

import pytest
from pydantic import TypeAdapter

from stillhouse.evaluation.report.importance_plot import TITLE, bar_chart, explanation, layer_importance, summary_line
from stillhouse.evaluation.report.report import as_json, html, markdown
from stillhouse.evaluation.results import LayerImportance, Report
from stillhouse.student.start.record import StackStart, Start
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
    r"<title>layer (\d+): (\S+), (\w+)</title>"
    r'<path d="M \S+ (\S+)\s+L \S+ \S+\s+L \S+ (\S+)\s+L [^"]*" [^>]*style="fill: ([^;]+);'
)


def drawn(one: LayerImportance) -> list[tuple[str, str | None, float, int, str]]:
    """Outcome, filling, height, layer and figure of each bar, in the order of the layers."""
    found = [
        (outcome, filling, float(bottom) - float(top), int(layer), figure)
        for layer, figure, outcome, bottom, top, filling in _BAR.findall(bar_chart(one))
    ]
    return sorted(found, key=lambda bar: bar[3])


def test_bars_are_the_square_roots_of_the_scores_from_layer_0() -> None:
    found = drawn(ONE)
    assert [layer for *_, layer, _ in found] == [*range(10)]
    assert [figure for *_, figure in found] == [f"{score:.3g}" for score in SCORES]
    full = found[0][2]
    for (_, _, height, _, _), score in zip(found[:-1], SCORES, strict=False):
        assert height == pytest.approx(full * (score / 8.34) ** 0.5, abs=0.1)
    assert 1 < found[-1][2] < 3  # worth nothing, and there


def test_bars_of_layers_that_were_left_out_are_empty() -> None:
    assert [layer for outcome, *_, layer, _ in drawn(ONE) if outcome == "kept"] == [*ONE.kept]
    assert {bar[:2] for bar in drawn(ONE)} == {("kept", "var(--accent)"), ("removed", "none")}
    page = html(dataclasses.replace(SEPARATE, starts=(ONE,)))
    assert ">kept</text>" in page
    assert ">removed</text>" in page


def test_layers_that_are_worth_nothing_at_all_are_drawn() -> None:
    nothing = dataclasses.replace(ONE, scores=(0.0, -1e-9, 0.0), kept=(0,))
    heights = [height for _, _, height, _, _ in drawn(nothing)]
    assert len(heights) == 3
    assert all(1 < height < 3 for height in heights)


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

"""The importance of the teacher's layers: as an SVG bar chart, as a line of Markdown, and how it was measured.

    starts = layer_importance(read_start(folder))     # of the student in this folder
    bar_chart(starts[0]), summary_line(starts[0]), explanation(starts[0])

The first layers of a model often score a hundred times as high as others, so the plot has a square-root scale.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

from stillhouse.evaluation.report.svg import format_value, svg, text_at
from stillhouse.evaluation.results import LayerImportance
from stillhouse.student.start.descriptions import rows_in_words
from stillhouse.student.start.record import Start

TITLE = "Layer importance"
_WIDTH, _HEIGHT, _LEFT, _RIGHT, _TOP, _BOTTOM = 640, 306, 60, 626, 52, 250
_BETWEEN = 26  # minimum pixels between two ticks
_NUMBER = 34  # pixels for a layer's number, on a phone
_THINNEST = 1.5  # minimum height of a bar, pixels: a layer with score 0 stays visible
_LOST, _INFLUENCE = "nats per token if removed", "block influence"
_NAMES = {"greedy": "greedy removal", "leave-one-out": "leave-one-out", "block-influence": _INFLUENCE}
_MEASURED = {
    "greedy": "They were chosen by greedy removal: the layer whose removal costs least is removed, the others are measured "
    "again without it, and so on. {alone} So a layer whose work another one can do may be removed despite a higher bar.",
    "leave-one-out": "They are the layers whose removal costs most. {alone}",
    "block-influence": "They are the layers that change their input most. A bar is the block influence of a layer, 1 minus "
    "the cosine similarity of its input and output{measured}.",
}
_ALONE = "A bar is the KL to the whole teacher if only that layer is removed, in nats per token{measured}."


def layer_importance(start: Start | None) -> tuple[LayerImportance, ...]:
    """Return the layer importance of each stack; empty if the layers were listed or evenly spaced."""
    if start is None:
        return ()
    return tuple(
        LayerImportance(
            stack=one.stack,
            method=one.method,
            unit=_INFLUENCE if one.method == "block-influence" else _LOST,
            kept=one.kept,
            scores=one.scores,
            rows=start.rows,
            dataset=start.dataset,
        )
        for one in start.stacks
        if one.method is not None and one.scores
    )


def layers_phrase(one: LayerImportance, count: str = "") -> str:
    """Return a phrase such as "the teacher's 24 encoder layers"; `count` is the number in it."""
    return " ".join(filter(None, ["the teacher's", count, one.stack if one.stack != "model" else "", "layers"]))


def explanation(one: LayerImportance) -> str:
    """Return sentences on which layers were kept, how they were chosen, and on which rows."""
    rows = rows_in_words(one.rows, one.dataset)
    measured = f", measured{rows}" if rows else ""
    chosen = _MEASURED[one.method].format(alone=_ALONE.format(measured=measured), measured=measured)
    return f"Kept: {len(one.kept)} of {layers_phrase(one, str(len(one.scores)))} ({_listed(one.kept)}). {chosen}"


def summary_line(one: LayerImportance) -> str:
    """Return the kept layers and every layer's score in one line."""
    scores = ", ".join(f"{layer}: {format_value(score)}" for layer, score in enumerate(one.scores))
    which = "Layers" if one.stack == "model" else f"{one.stack.capitalize()} layers"
    rows = rows_in_words(one.rows, one.dataset)
    how = f"{_NAMES[one.method]}{rows}" + (f", {one.unit}" if one.unit != _INFLUENCE else "")
    return f"{which} kept: {_listed(one.kept)} of {len(one.scores)} ({how}: {scores})."


def bar_chart(one: LayerImportance) -> str:
    """Return a bar chart with one bar per layer: filled if the layer was kept, outlined if it was left out."""
    scale = _Scale(max(one.scores) if max(one.scores) > 0 else 1.0)
    slot = (_RIGHT - _LEFT) / len(one.scores)
    parts = _legend(one.unit)
    for value in scale.ticks:
        y = scale.place(value)
        parts.append(f'<line class="grid" x1="{_LEFT}" y1="{y:.1f}" x2="{_RIGHT}" y2="{y:.1f}"/>')
        parts.append(text_at(_LEFT - 8, y + 5, format_value(value), "end"))
    for layer, score in enumerate(one.scores):
        y = min(scale.place(score), _BOTTOM - _THINNEST)
        tooltip = f"layer {layer}: {format_value(score)} {one.unit}, {_outcome(layer, one)}"
        parts.append(_bar(_LEFT + slot * (layer + 0.14), y, slot * 0.72, _BOTTOM - y, tooltip, kept=layer in one.kept))
    parts.append(_highest(one.scores, slot, scale))
    step = next((step for step in (1, 2, 5, 10, 20, 50) if step * slot >= _NUMBER), 100)
    for layer in range(0, len(one.scores), step):
        parts.append(text_at(_LEFT + slot * (layer + 0.5), _BOTTOM + 20, str(layer), "middle"))
    named = "layer" if one.stack == "model" else f"{one.stack} layer"
    parts.append(text_at((_LEFT + _RIGHT) / 2, _HEIGHT - 8, named, "middle"))
    worth = "; ".join(
        f"{layer}: {format_value(score)}, {_outcome(layer, one)}" for layer, score in enumerate(one.scores)
    )
    return svg(_WIDTH, _HEIGHT, f"{TITLE}, {one.unit}, of {layers_phrase(one)}: {worth}", parts)


@dataclass(frozen=True)
class _Scale:
    """A square-root scale from 0 at the bottom of the plot to `top` below the legend."""

    top: float

    def place(self, value: float) -> float:
        """Return the pixel of a value; values below 0, which are rounding errors, are drawn at 0."""
        return _BOTTOM - (_BOTTOM - _TOP) * math.sqrt(max(value, 0.0) / self.top)

    @property
    def ticks(self) -> list[float]:
        """0, and round values up to the top, as many as have room for their number."""
        power = math.floor(math.log10(self.top))
        found = [0.0]
        for value in (part * 10.0**ten for ten in range(power - 3, power + 1) for part in (1, 2, 5)):
            if value <= self.top and self.place(found[-1]) - self.place(value) >= _BETWEEN:
                found.append(value)
        return found


def _bar(x: float, y: float, width: float, height: float, tooltip: str = "", *, kept: bool) -> str:
    kind = "kept" if kept else "gone"
    title = f"<title>{tooltip}</title>" if tooltip else ""
    return (
        f'<rect class="layer {kind}" x="{x:.1f}" y="{y:.1f}" width="{width:.1f}" height="{height:.1f}">{title}</rect>'
    )


def _legend(unit: str) -> list[str]:
    """Return the legend: the unit on the left, the filled and the outlined bar on the right."""
    return [
        text_at(4, 20, unit, "start"),
        _bar(428, 7, 14, 14, kept=True),
        text_at(448, 20, "kept", "start"),
        _bar(516, 7, 14, 14, kept=False),
        text_at(536, 20, "removed", "start"),
    ]


def _highest(scores: Sequence[float], slot: float, scale: _Scale) -> str:
    """Return the score of the highest bar as a text above it, kept inside the plot at both edges."""
    layer = max(range(len(scores)), key=lambda place: scores[place])
    middle = _LEFT + slot * (layer + 0.5)
    x, anchor = middle, "middle"
    if middle < _LEFT + 40:
        x, anchor = _LEFT + slot * (layer + 0.14), "start"
    elif middle > _RIGHT - 40:
        x, anchor = _LEFT + slot * (layer + 0.86), "end"
    return text_at(x, scale.place(scores[layer]) - 6, format_value(scores[layer]), anchor, "value")


def _outcome(layer: int, one: LayerImportance) -> str:
    return "kept" if layer in one.kept else "removed"


def _listed(layers: Sequence[int]) -> str:
    return ", ".join(map(str, layers))

"""The importance of the teacher's layers: as a bar chart, as a line of Markdown, and how it was measured.

    starts = layer_importance(read_start(folder))     # of the student in this folder
    bar_chart(starts[0]), summary_line(starts[0]), explanation(starts[0])

The first layers of a model often score a hundred times as high as others, so the plot has a square-root scale.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import TYPE_CHECKING

import numpy as np

from stillhouse.evaluation.report.drawing import ACCENT, INK, draw, write_beside
from stillhouse.evaluation.results import LayerImportance
from stillhouse.formatting import format_value
from stillhouse.student.start.descriptions import rows_in_words
from stillhouse.student.start.record import Start

if TYPE_CHECKING:
    from matplotlib.figure import Figure

TITLE = "Layer importance"
_BETWEEN = 0.12  # minimum distance of two ticks, of the plot's height
_LOWEST = 5e-5  # of the highest score: a bar is at least this high, so that a layer with score 0 is visible
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
    """Return a bar chart with one bar per layer: filled if the layer was kept, outlined if it was removed."""
    highest = max(one.scores) if max(one.scores) > 0 else 1.0
    ticks = _ticks(highest)
    worth = [f"layer {layer}: {format_value(score)}, {_outcome(layer, one)}" for layer, score in enumerate(one.scores)]

    def plot(figure: Figure) -> None:
        axes = figure.add_subplot()
        for outcome, filling in (("kept", ACCENT), ("removed", "none")):
            layers = [layer for layer in range(len(one.scores)) if _outcome(layer, one) == outcome]
            heights = [max(one.scores[layer], _LOWEST * highest) for layer in layers]
            bars = axes.bar(layers, heights, 0.72, facecolor=filling, edgecolor=ACCENT, linewidth=1.5, label=outcome)
            for layer, bar in zip(layers, bars, strict=True):
                bar.set_gid(worth[layer])
        first = one.scores.index(max(one.scores))
        value = format_value(one.scores[first])
        write_beside(axes, value, (first, highest), (0, 4), ha="center", color=INK, weight="bold")
        axes.set_yscale("function", functions=(np.sqrt, np.square))
        axes.set_yticks(ticks, [format_value(tick) for tick in ticks])
        axes.set(xlim=(-0.7, len(one.scores) - 0.3), ylim=(0, 1.25 * highest))
        axes.locator_params(axis="x", nbins=12, integer=True)
        axes.set_xlabel("layer" if one.stack == "model" else f"{one.stack} layer")
        axes.set_title(one.unit)
        axes.legend(loc="lower right", bbox_to_anchor=(1, 1), ncols=2, frameon=False, borderaxespad=0.3)

    return draw(f"{TITLE}, {one.unit}, of {layers_phrase(one)}: {'; '.join(worth)}", plot)


def _ticks(top: float) -> list[float]:
    """Return 0 and round values up to `top`, as many as have room on a square-root scale."""
    power = math.floor(math.log10(top))
    found = [0.0]
    for value in (part * 10.0**ten for ten in range(power - 3, power + 1) for part in (1, 2, 5)):
        if value <= top and math.sqrt(value / top) - math.sqrt(found[-1] / top) >= _BETWEEN:
            found.append(value)
    return found


def _outcome(layer: int, one: LayerImportance) -> str:
    return "kept" if layer in one.kept else "removed"


def _listed(layers: Sequence[int]) -> str:
    return ", ".join(map(str, layers))

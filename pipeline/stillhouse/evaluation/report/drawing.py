"""Plots drawn by matplotlib, as SVG elements of an HTML page.

    svg = draw("Loss of the student, from 9.00 to 4.00", paint)       # paint(figure) draws on a matplotlib Figure

The colours are variables of the page's style sheet, so that a plot follows the page's light and dark mode. Texts stay
texts, in the page's font. The same plot always gives the same text. matplotlib is imported when the first plot is drawn.
"""

from __future__ import annotations

import re
import warnings
from collections.abc import Callable, Sequence
from io import StringIO
from typing import TYPE_CHECKING, Any
from xml.etree import ElementTree

from stillhouse.evaluation.results import Interval

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

MARKERS = "so^DvPX*h"  # one for each of the page's model colours
_WIDTH = 420  # of every plot, in SVG units; a text of 13 units can be read where this is the width of a phone
_FAR = 2.5  # an outlier whose gap to the other models is this many times their range is drawn at the edge, not to scale
_VARIABLES = ("ink", "soft", "line", "accent", "card", *(f"m{number}" for number in range(len(MARKERS))))
_COLOURS = [f"#0000{number:02x}" for number in range(1, len(_VARIABLES) + 1)]  # stand for the variables until the end
INK, SOFT, LINE, ACCENT, CARD, *_MODELS = _COLOURS
_STYLE = {
    "axes.axisbelow": True,
    "axes.formatter.useoffset": False,
    "axes.grid": True,
    "axes.grid.axis": "y",
    "axes.titlelocation": "left",
    "axes.titlepad": 12,
    "axes.titlesize": "medium",
    "figure.constrained_layout.use": True,
    "font.sans-serif": ["DejaVu Sans"],  # measures the texts; matplotlib brings it
    "font.size": 13,
    "grid.color": LINE,
    "grid.linewidth": 1,
    "svg.fonttype": "none",
    "text.parse_math": False,  # "$" in a name is a dollar
    **dict.fromkeys([f"axes.spines.{side}" for side in ("bottom", "left", "right", "top")], False),
    **dict.fromkeys(["axes.facecolor", "figure.facecolor"], "none"),
    **dict.fromkeys([f"{axis}tick.major.size" for axis in "xy"], 0),
    **dict.fromkeys([f"{axis}tick.major.pad" for axis in "xy"], 7),
    **dict.fromkeys(
        ["text.color", "axes.labelcolor", "legend.labelcolor", "xtick.labelcolor", "ytick.labelcolor"], SOFT
    ),
}
_NOT_IN_XML = re.compile("[\x00-\x08\x0b-\x1f\x7f-\x9f\ufffe\uffff]")
_SVG, _LINK = "{http://www.w3.org/2000/svg}", "{http://www.w3.org/1999/xlink}href"


def role_class(place: int) -> str:
    """Return the style class, which is the name of the colour too, of the model in row `place` of the table."""
    return f"m{place % len(MARKERS)}"


def model_colour(place: int) -> str:
    """Return the colour, for matplotlib, of the model in row `place` of the table."""
    return _MODELS[place % len(MARKERS)]


def mark(axes: Axes, x: float, y: float, place: int) -> None:
    """Draw the mark, with shape and colour, of the model in row `place` of the table."""
    axes.plot(x, y, MARKERS[place % len(MARKERS)], color=model_colour(place), markersize=9, clip_on=False, zorder=3)


def write_beside(axes: Axes, text: str, point: tuple[float, float], offset: tuple[float, float], **style: Any) -> None:
    """Write a text at an offset in SVG units from a point."""
    axes.annotate(text, point, offset, textcoords="offset points", **style)


def axis_range(scores: Sequence[Interval]) -> tuple[float, float]:
    """Return the lowest and the highest value that the axis must reach.

    A single far outlier, such as an untrained model, is ignored and drawn at the edge; it would squeeze the other models.
    """
    ordered = sorted(scores, key=lambda score: score.mean)
    if len(ordered) > 2:
        for gap, rest in (
            (ordered[1].low - ordered[0].high, ordered[1:]),
            (ordered[-1].low - ordered[-2].high, ordered[:-1]),
        ):
            lowest, highest = min(score.low for score in rest), max(score.high for score in rest)
            if gap > _FAR * (highest - lowest):
                return lowest, highest
    return min(score.low for score in ordered), max(score.high for score in ordered)


def round_ticks(lowest: float, highest: float) -> list[float]:
    """Return round ticks, at most six, that enclose both values; they start at 0 if 0 <= `lowest` <= `highest` / 2."""
    from matplotlib.ticker import MaxNLocator

    start = 0 if 0 <= lowest <= highest / 2 else lowest
    ticks = MaxNLocator(5, steps=[1, 2, 2.5, 5, 10]).tick_values(start, highest if highest > start else start + 1)
    return [float(tick) for tick in ticks]


def draw(title: str, plot: Callable[[Figure], object], height: float = 300) -> str:
    """Return one `<svg>` that scales to the width of its container.

    While it draws, matplotlib's global settings are those of `_STYLE`; no other setting of the user shapes a plot.

    Args:
        title: describes the plot for screen readers.
        plot: draws into the empty figure. The `gid` that it gives to an artist is shown when the mouse is over it.
        height: in the units of `_WIDTH`.
    """
    from matplotlib import style
    from matplotlib.figure import Figure

    title = _NOT_IN_XML.sub("\ufffd", title)
    written = StringIO()
    with warnings.catch_warnings(), style.context(["default", _STYLE, {"svg.hashsalt": title}]):
        warnings.filterwarnings("ignore", "Glyph .* missing from font")  # the browser has one
        figure = Figure(figsize=(_WIDTH / 72, height / 72), dpi=72)
        plot(figure)
        figure.savefig(written, format="svg", metadata={"Date": None})
    return _for_page(written.getvalue(), title)


def _for_page(svg: str, title: str) -> str:
    """Return matplotlib's SVG without what a page has already, or must not have twice: namespaces, styles and ids."""
    used = set(re.findall(r'(?:href="|url\()#(\w+)', svg))
    root = ElementTree.fromstring(_NOT_IN_XML.sub("\ufffd", svg))
    root.attrib = {"class": "plot", "role": "img", "aria-label": title, "viewBox": root.attrib["viewBox"]}
    root.set("style", "stroke-linejoin: round; stroke-linecap: butt")  # as in the style element that is removed
    del root[:2]  # metadata, and the style element
    for element in [*root.iter()]:
        element.tag = element.tag.removeprefix(_SVG)
        name, link, style = (element.attrib.pop(key, "") for key in ("id", _LINK, "style"))
        if name in used:
            element.set("id", name)
        elif " " in name:
            label = ElementTree.Element("title")
            label.text = name
            element.insert(0, label)
        if link:
            element.set("href", link)
        if style:
            element.set("style", re.sub("#0000(..)", _variable, re.sub("font-family: [^;]*;?", "", style)))
    return ElementTree.tostring(root, "unicode", short_empty_elements=False)


def _variable(placeholder: re.Match[str]) -> str:
    return f"var(--{_VARIABLES[int(placeholder[1], 16) - 1]})"

"""Render a dataset as one HTML page: its facts, histograms of completion length and teacher entropy, and sample rows.

    page = render_page(dataset, samples, measure_dataset(dataset), reasons, size, texts.note)

The page works offline and is not allowed to use the network: its Content-Security-Policy permits only its own styles and
its own script (by hash), so text from a prompt or a completion cannot run as code. The layout is browse.html.j2; browse.js
handles hover, focus and tap on a token.
"""

from __future__ import annotations

import base64
import hashlib
from collections.abc import Sequence
from functools import cache
from html import escape
from importlib.resources import files as package_files
from itertools import pairwise
from pathlib import Path

from jinja2 import Environment, StrictUndefined, Template
from markupsafe import Markup

from stillhouse.dataset.card import Reasons
from stillhouse.dataset.listing import bin_name, histogram_summary, version_facts
from stillhouse.dataset.samples import Sample, Token
from stillhouse.dataset.statistics import Histogram, Statistics, entropy_note
from stillhouse.dataset.store import Dataset
from stillhouse.errors import UsageError
from stillhouse.formatting import format_number
from stillhouse.inputs.plain_json import to_json
from stillhouse.storage.durable import write_atomically

_TITLE = " – Stillhouse dataset</title>"  # from browse.html.j2; identifies a page that Stillhouse wrote
_HEAD_BYTES = 4096
LEVELS = (0.1, 0.5, 1.0, 1.5, 2.5)  # entropy in nats at which each darker colour begins


def write_page(file: Path, page: str) -> None:
    """Write a page that `render_page` made, replacing an earlier page.

    Raises:
        UsageError: the file exists and is not a dataset page.
    """
    if file.exists() and not _is_page(file):
        raise UsageError(
            "the file exists and is not a dataset page", setting="--html", value=str(file), fix="name another file"
        )
    write_atomically(file, page.encode("utf-8", "replace"))


def _is_page(file: Path) -> bool:
    if not file.is_file():
        return False
    with file.open("rb") as stream:
        return _TITLE.encode() in stream.read(_HEAD_BYTES)


def render_page(
    dataset: Dataset, samples: Sequence[Sample], found: Statistics, reasons: Reasons, size: int, token_note: str
) -> str:
    """Return the page as HTML."""
    manifest = dataset.manifest
    script = _read_asset("browse.js")
    page = _template().render(
        manifest=manifest,
        facts=version_facts(manifest, size),
        rejections=sorted(reasons.items()),
        lengths=_histogram_svg(found.lengths, "completions"),
        entropies=_histogram_svg(found.entropies, "tokens"),
        length_words=found.lengths and histogram_summary(found.lengths),
        entropy_words=found.entropies and histogram_summary(found.entropies),
        rows_measured=found.rows_measured,
        entropy_note=entropy_note(manifest)
        if manifest.soft
        else "over the tokens that the server listed, and all others together",
        token_note=token_note,
        samples=samples,
        coloured=any(sample.tokens for sample in samples),
        levels=_level_names(),
        data=Markup(_data_json(samples)),
        script=Markup(script),
        policy=_policy(script),
    )
    return page + "\n"


@cache
def _template() -> Template:
    environment = Environment(autoescape=True, undefined=StrictUndefined, trim_blocks=True, lstrip_blocks=True)
    environment.globals |= {"level": level, "visible": visible_text}
    environment.filters["percent"] = percent
    return environment.from_string(_read_asset("browse.html.j2"))


def level(entropy: float) -> int:
    """Return the colour level of a token's entropy, from 0 (certain) to 5."""
    return sum(entropy >= least for least in LEVELS)


def visible_text(text: str) -> str:
    """Return a token's text with visible line breaks; an empty text is shown as ⟨⟩."""
    return text.replace("\n", "↵\n") or "⟨⟩"


def percent(share: float) -> str:
    """Format a probability as a percentage."""
    return "< 0.1 %" if 0 < share < 0.001 else f"{share * 100:.1f} %"


# ------------------------------------------------------------------------------------------------------------------ data


def _data_json(samples: Sequence[Sample]) -> str:
    """Return the token data for the script as JSON, escaped so that it cannot close the enclosing element."""
    data = [[_token_data(token) for token in sample.tokens or ()] for sample in samples]
    text = to_json(data)
    return text.replace("&", "\\u0026").replace("<", "\\u003c").replace(">", "\\u003e")


def _token_data(token: Token) -> list[object]:
    probability = None if token.probability is None else percent(token.probability)
    alternatives = [
        [one.text, percent(one.probability), round(one.probability, 4), int(one.chosen)] for one in token.alternatives
    ]
    return [token.text, probability, f"{token.entropy:.2f}", alternatives, percent(token.others)]


def _policy(script: str) -> str:
    digest = base64.b64encode(hashlib.sha256(script.encode()).digest()).decode()
    return (
        f"default-src 'none'; style-src 'unsafe-inline'; script-src 'sha256-{digest}'; img-src data:; base-uri 'none'; "
        "form-action 'none'"
    )


def _read_asset(name: str) -> str:
    return package_files("stillhouse.dataset").joinpath(name).read_text("utf-8")


def _level_names() -> list[str]:
    edges = [format_number(edge) for edge in LEVELS]
    return [
        f"below {edges[0]}",
        *(f"{low}–{high}" for low, high in pairwise(edges)),
        f"{edges[-1]}+",
    ]


# ----------------------------------------------------------------------------------------------------------------- plots

_WIDTH, _HEIGHT, _LEFT, _BOTTOM, _TOP = 640, 270, 64, 216, 14


def _histogram_svg(found: Histogram | None, what: str) -> Markup | None:
    """Render a histogram as an SVG that scales to its container."""
    if found is None:
        return None
    most = max(found.counts)
    tick = _tick(most)
    ceiling = tick * -(-most // tick)
    parts = []
    for value in range(0, ceiling + 1, tick):
        y = _BOTTOM - (_BOTTOM - _TOP) * value / ceiling
        parts.append(f'<line class="grid" x1="{_LEFT}" y1="{y:.1f}" x2="{_WIDTH - 10}" y2="{y:.1f}"/>')
        parts.append(f'<text class="tick" x="{_LEFT - 8}" y="{y + 4:.1f}" text-anchor="end">{_thousands(value)}</text>')
    wide = (_WIDTH - 10 - _LEFT) / len(found.counts)
    every = -(-len(found.counts) // 8)
    for index, count in enumerate(found.counts):
        x, tall = _LEFT + wide * index, (_BOTTOM - _TOP) * count / ceiling
        title = escape(f"{bin_name(found, index)} {found.unit}: {count:,} {what}")
        if count:
            tall = max(tall, 1.5)
            parts.append(
                f'<rect class="bar" x="{x + 1:.1f}" y="{_BOTTOM - tall:.1f}" width="{max(wide - 2, 1):.1f}" '
                f'height="{tall:.1f}" rx="2"><title>{title}</title></rect>'
            )
        if index % every == 0:
            parts.append(
                f'<text class="tick" x="{x:.1f}" y="{_BOTTOM + 20}" text-anchor="middle">{_edge_label(found, index)}</text>'
            )
    parts.append(
        f'<text class="tick" x="{(_LEFT + _WIDTH) / 2}" y="{_HEIGHT - 8}" text-anchor="middle">{found.unit}</text>'
    )
    title = escape(f"{what} by {found.unit}: {histogram_summary(found)}")
    return Markup(f'<svg viewBox="0 0 {_WIDTH} {_HEIGHT}" role="img"><title>{title}</title>{"".join(parts)}</svg>')


def _edge_label(found: Histogram, index: int) -> str:
    last = found.open_end and index == len(found.counts) - 1
    return format_number(found.edges[index]) + ("+" if last else "")


def _tick(most: int) -> int:
    """Return a round axis step that gives at most five steps up to `most`."""
    step = 1
    while step * 5 < most:
        step = step * 2 if str(step)[0] != "2" else step * 5 // 2
    return step


def _thousands(value: int) -> str:
    return f"{value / 1000:g}k" if value >= 10_000 else f"{value:,}"

"""Format datasets as lines of text for `stillhouse datasets list` and `show`, in 80 columns or more."""

from __future__ import annotations

import textwrap
from collections.abc import Sequence
from typing import Any

from stillhouse.dataset.card import Reasons
from stillhouse.dataset.catalog import CatalogEntry
from stillhouse.dataset.manifest import Manifest
from stillhouse.dataset.samples import Sample
from stillhouse.dataset.statistics import Histogram, Statistics, entropy_note
from stillhouse.formatting import format_amount, format_number

_HEADERS = ("dataset", "rows", "tokens", "labels", "size", "cost", "made")
_INDENT = "  "
_EIGHTHS = " ▏▎▍▌▋▊▉█"
_BAR = 32  # characters


# ------------------------------------------------------------------------------------------------------------------ list


def catalog_lines(listed: Sequence[CatalogEntry], width: int) -> list[str]:
    """Return a table with a row of figures and a line of description for each version."""
    rows = [_HEADERS, *(_figures(one) for one in listed)]
    widths = [max(len(row[index]) for row in rows) for index in range(len(_HEADERS))]
    lines: list[str] = []
    for row, one in zip(rows, [None, *listed], strict=True):
        cells = [
            cell.ljust(size) if index == 0 else cell.rjust(size)
            for index, (cell, size) in enumerate(zip(row, widths, strict=True))
        ]
        lines.append(" ".join(cells).rstrip() if one is None or one.manifest else row[0])
        if one is not None:
            lines += _wrapped(_describe(one), width)
    return lines


def _figures(one: CatalogEntry) -> tuple[str, ...]:
    manifest = one.manifest
    if manifest is None:
        return (one.label, "", "", "", format_amount(one.bytes, "B"), "", "")
    totals = manifest.totals
    return (
        one.label,
        f"{sum(manifest.rows.values()):,}",
        format_amount(totals.prompt_tokens + totals.completion_tokens),
        labels_name(manifest),
        format_amount(one.bytes, "B"),
        "–" if totals.cost_usd is None else f"${totals.cost_usd:,.2f}",
        manifest.created_at[:10],
    )


def _describe(one: CatalogEntry) -> list[str]:
    """Describe how a version was made and, if it is damaged, what is wrong with it."""
    lines = []
    if one.manifest is not None:
        teachers = " and ".join(t.model or t.kind for t in (one.manifest.teacher, *one.manifest.more_teachers))
        parents = f", from {', '.join(one.parents)}" if one.parents else ""
        lines = [f"{one.manifest.made_by}, {teachers}{parents}"]
    return lines + ([f"DAMAGED: {one.damage}"] if one.damage else [])


def removal_lines(listed: Sequence[CatalogEntry]) -> list[str]:
    """List what would be deleted, for the confirmation prompt."""
    lines = []
    for one in listed:
        if one.manifest is None:
            lines.append(f"{one.label}: {format_amount(one.bytes, 'B')}, unfinished or damaged")
            continue
        rows, cost = sum(one.manifest.rows.values()), one.manifest.totals.cost_usd
        paid = f"; its answers cost ${cost:,.2f}, which labelling again would cost again" if cost else ""
        lines.append(f"{one.label}: {rows:,} rows, {format_amount(one.bytes, 'B')}{paid}")
    return lines


def listed_json(one: CatalogEntry) -> dict[str, Any]:
    """Return a version as JSON-ready data; if its manifest is unreadable, only name, folder, size and damage."""
    manifest = one.manifest
    known: dict[str, Any] = {"dataset": one.label, "folder": str(one.folder), "bytes": one.bytes, "damage": one.damage}
    if manifest is None:
        return known
    return known | {
        "teacher": manifest.teacher.model,
        "more_teachers": [teacher.model for teacher in manifest.more_teachers],
        "rows": manifest.rows,
        "rejected": manifest.rejected,
        "prompt_tokens": manifest.totals.prompt_tokens,
        "completion_tokens": manifest.totals.completion_tokens,
        "cost_usd": manifest.totals.cost_usd,
        "soft": manifest.soft.model_dump(mode="json", exclude_none=True) if manifest.soft else None,
        "made_by": manifest.made_by,
        "how": manifest.how,
        "parents": list(manifest.parents),
        "licence": manifest.licence,
        "created_at": manifest.created_at,
    }


# ------------------------------------------------------------------------------------------------------------------ show


def version_facts(manifest: Manifest, size: int) -> list[tuple[str, str]]:
    """Return the facts of a version as (name, value) pairs."""
    totals = manifest.totals
    teachers = [manifest.teacher, *manifest.more_teachers]
    rows = ", ".join(f"{count:,} {split}" for split, count in manifest.rows.items()) or "none"
    sampling = manifest.sampling.model_dump() if manifest.sampling else {}
    cost = "unknown" if totals.cost_usd is None else f"${totals.cost_usd:,.4f}"
    known = [
        ("teacher", ", ".join(f"{one.model or one.kind} ({one.kind})" for one in teachers)),
        ("revision", manifest.teacher.revision or ""),
        ("made", f"{manifest.created_at}, by {manifest.made_by}, Stillhouse {manifest.stillhouse}"),
        ("how", manifest.how),
        ("parents", ", ".join(manifest.parents)),
        ("prompts", f"{manifest.prompts:,}"),
        ("rows", rows),
        ("mode", manifest.mode or "unknown, or not the same for all rows"),
        (
            "sampling",
            ", ".join(f"{key} {value}" for key, value in sampling.items()) or "unknown, or not the same for all rows",
        ),
        ("soft labels", str(manifest.soft or "none: text only")),
        ("tokens", f"{totals.prompt_tokens:,} in prompts, {totals.completion_tokens:,} in completions"),
        ("cost", cost + (f", ${totals.spent_usd:,.4f} spent on the dataset so far" if totals.spent_usd else "")),
        (
            "size",
            f"{format_amount(size, 'B')}, {len(manifest.files)} Parquet file"
            + ("s" if len(manifest.files) != 1 else ""),
        ),
        ("licence", manifest.licence or "not set"),
    ]
    return [(name, value) for name, value in known if value]


def reason_lines(reasons: Reasons) -> list[str]:
    """List the counts of rejected rows by stage and reason."""
    width = max((len(f"{count:,}") for count in reasons.values()), default=0)
    return [f"{_INDENT}{count:>{width},}  {stage}: {reason}" for (stage, reason), count in sorted(reasons.items())]


def statistics_lines(found: Statistics, manifest: Manifest) -> list[str]:
    """Format the histograms of completion lengths and entropies as text bars."""
    lines: list[str] = []
    if found.lengths:
        lines += [f"completion length, {found.lengths.unit}", *_bars(found.lengths), ""]
    if found.entropies:
        title = f"teacher entropy per token, nats, at {found.entropies.values:,} tokens of {found.rows_measured:,} rows"
        lines += [title, *_wrapped([entropy_note(manifest)], 80), *_bars(found.entropies), ""]
    return lines


def _bars(found: Histogram) -> list[str]:
    names = [bin_name(found, index) for index in range(len(found.counts))]
    wide, most = max(map(len, names)), max(found.counts)
    bars = [_bar(count / most).ljust(_BAR) for count in found.counts]
    named = zip(names, bars, found.counts, strict=True)
    return [
        *(f"{_INDENT}{name:>{wide}} {bar} {count:,}" for name, bar, count in named),
        _INDENT + histogram_summary(found),
    ]


def histogram_summary(found: Histogram) -> str:
    """Summarise a histogram: mean, median, 95th percentile and maximum."""
    mean, median, p95, highest = (
        format_number(value) for value in (found.mean, found.median, found.p95, found.highest)
    )
    return f"mean {mean}, median {median}, 95 % at most {p95}, highest {highest}"


def bin_name(found: Histogram, index: int) -> str:
    """Return the value range of a bin: 10–19 for whole numbers, 0.2–0.4 for nats."""
    low, high = found.edges[index], found.edges[index + 1]
    if found.open_end and index == len(found.counts) - 1:
        return f"{format_number(low)}+"
    if found.unit == "nats":
        return f"{format_number(low)}–{format_number(high)}"
    return format_number(low) if high - low == 1 else f"{format_number(low)}–{format_number(high - 1)}"


def sample_lines(samples: Sequence[Sample], width: int) -> list[str]:
    """Format sample rows, with each text cut to three lines."""
    lines: list[str] = []
    for sample in samples:
        completion = sample.completion
        count = "" if completion.completion_tokens is None else f", {completion.completion_tokens} tokens"
        lines.append(f"{completion.id[:12]}  {sample.split}, {completion.finish_reason}{count}")
        for turn in completion.prompt.messages:
            lines += _turn_lines(turn.role, turn.content, width)
        lines += [*_turn_lines("completion", completion.text, width), ""]
    return lines


# --------------------------------------------------------------------------------------------------------------- helpers


def labels_name(manifest: Manifest) -> str:
    """Name the kind of labels of a version: text, top-k 32, sampled 50."""
    soft = manifest.soft
    return "text" if soft is None else f"{soft.encoding} {soft.draws if soft.encoding == 'sampled' else soft.k}"


def _bar(share: float) -> str:
    eighths = max(round(share * _BAR * 8), 1 if share > 0 else 0)
    return "█" * (eighths // 8) + (_EIGHTHS[eighths % 8] if eighths % 8 else "")


def _turn_lines(who: str, text: str, width: int) -> list[str]:
    """Format a turn on at most three lines; control characters, which could move the cursor, become spaces."""
    plain = "".join(character if character.isprintable() else " " for character in text)
    head = f"{_INDENT}{who}: "
    return textwrap.wrap(
        plain, width, initial_indent=head, subsequent_indent=_INDENT * 2, max_lines=3, placeholder=" …"
    ) or [head.rstrip()]


def _wrapped(texts: Sequence[str], width: int) -> list[str]:
    return [
        line
        for text in texts
        for line in textwrap.wrap(
            text, width, initial_indent=_INDENT, subsequent_indent=_INDENT, break_on_hyphens=False
        )
    ]

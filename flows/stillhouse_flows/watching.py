"""What a run shows on its page in Prefect besides the log: its artifacts, each under a key of its own stage and recipe.

    plan-quickstart         before anything is sent: what it will send, cost and take
    labelling-quickstart    while it runs: how far it is, how fast, for how many dollars, how long it will still take
    labels-quickstart       the rows that it made, and those rejected
    card-quickstart         the dataset's card
    teacher-quickstart      the fine-tuned teacher, where the recipe has one
    students-quickstart     what was trained, and where it lies
    report-quickstart       the report, with the place of its page
    sweep-quickstart        the report of a sweep, likewise

They are for people to look at, and nothing rests on them: where the server cannot be reached, the run goes on without.
"""

from __future__ import annotations

import asyncio
import hashlib
import re
from collections.abc import AsyncIterator, Awaitable, Sequence
from contextlib import asynccontextmanager
from datetime import UTC, datetime
from pathlib import Path
from uuid import UUID

import httpx
from prefect import get_run_logger
from prefect.artifacts import (
    acreate_markdown_artifact,
    acreate_progress_artifact,
    acreate_table_artifact,
    aupdate_progress_artifact,
    create_markdown_artifact,
)
from prefect.exceptions import PrefectException

from stillhouse.evaluation.evaluate import EvaluationResult
from stillhouse.evaluation.report.report import ReportFiles, markdown
from stillhouse.evaluation.report.warnings import warnings
from stillhouse.evaluation.sweep.evaluate import SweepEvaluation
from stillhouse.evaluation.sweep.report import sweep_markdown
from stillhouse.evaluation.sweep.verdict import sweep_warnings
from stillhouse.labelling.engine import LabelJob, LabelResult
from stillhouse.labelling.metrics import Metrics, format_duration, format_usd
from stillhouse.labelling.parts import FOLDER as PARTS
from stillhouse.recipe.load import Recipe
from stillhouse.student.finished.folder import StudentResult

EVERY = 10.0  # seconds between two looks at a run
_TROUBLE = (httpx.HTTPError, PrefectException, OSError)  # the server cannot be reached, or refuses
_WHOLE_LINES = ("#", "|", "```")  # in Markdown, what begins so is a line of its own
_PATIENCE = 10.0  # seconds for the server to take an artifact


def artifact_key(what: str, recipe: Recipe) -> str:
    """The key of one of a recipe's artifacts: lower-case letters, numbers and dashes, as Prefect wants them.

    A name that has anything else gets some of its hash, so that no two recipes share a key. What a worker labels of a whole
    (pipeline/stillhouse/labelling/parts.py) has its recipe's name and keys of its own: `part-labels-quickstart`.
    """
    name = re.sub(r"[^a-z0-9]+", "-", recipe.name.lower()).strip("-")
    if name != recipe.name:
        name += f"-{hashlib.sha256(recipe.name.encode()).hexdigest()[:6]}"
    is_part = recipe.dataset.root.rstrip("/").rpartition("/")[2] == PARTS
    return f"part-{what}-{name}" if is_part else f"{what}-{name}"


# ------------------------------------------------------------------------------------------------------------- labelling


async def show_plan(job: LabelJob, recipe: Recipe) -> None:
    """What labelling will send, cost and take, as `stillhouse plan` tells it."""
    lines = (await asyncio.to_thread(job.estimate)).lines()
    await _shown(
        acreate_markdown_artifact(
            _table(["", "before anything is sent"], lines),
            artifact_key("plan", recipe),
            f"What labelling {recipe.name} will send, cost and take",
        )
    )


@asynccontextmanager
async def watched(job: LabelJob, recipe: Recipe) -> AsyncIterator[None]:
    """Meanwhile an artifact says every few seconds how the job goes, and at last how it ended."""
    ended = asyncio.Event()
    watching = asyncio.create_task(_watch(job, artifact_key("labelling", recipe), ended))
    try:
        yield
    finally:
        ended.set()
        await watching


async def _watch(job: LabelJob, key: str, ended: asyncio.Event) -> None:
    made: UUID | None = None
    while True:
        last = ended.is_set()
        metrics = job.metrics()
        percent, told = round(100 * metrics.share, 1), metrics_text(metrics)
        if made is None:
            made = await _shown(acreate_progress_artifact(percent, key, told))
        else:
            await _shown(aupdate_progress_artifact(made, percent, told))
        if last:
            return
        try:
            async with asyncio.timeout(EVERY):
                await ended.wait()
        except TimeoutError:
            continue


def metrics_text(metrics: Metrics) -> str:
    """Metrics of labelling: a line, which lists of artifacts show, and all of them as a Markdown table."""
    rate, mean, left = metrics.tokens_per_second, metrics.mean_tokens_per_second, metrics.seconds_left
    budget = f" of {format_usd(metrics.budget_usd)}" if metrics.budget_usd is not None else ""
    lines = [
        ["done", f"{metrics.done:,} of {metrics.requests:,}"],
        ["answered before", f"{metrics.earlier:,}"],
        ["rejected", f"{metrics.rejected:,}"],
        ["in flight", f"{metrics.in_flight:,}"],
        ["tokens/s, last minute", "-" if rate is None else f"{rate:,.0f}"],
        ["tokens/s, whole run", "-" if mean is None else f"{mean:,.0f}"],
        ["spent", f"{format_usd(metrics.spent_usd)}{budget}"],
        ["time left", format_duration(left) if left else "-"],
        ["as of", datetime.now(UTC).strftime("%Y-%m-%d %H:%M UTC")],
    ]
    return f"Labelling: {metrics}\n\n{_table(['requests', ''], lines)}"


async def show_dataset(result: LabelResult, recipe: Recipe) -> None:
    """The rows of a version, and its card."""
    manifest, folder = result.dataset.manifest, result.dataset.folder
    await _shown(
        acreate_table_artifact(
            [{"rows": split, "count": f"{count:,}"} for split, count in manifest.rows.items()]
            + [{"rows": f"rejected: {reason}", "count": f"{count:,}"} for reason, count in manifest.rejected.items()],
            artifact_key("labels", recipe),
            f"Dataset {manifest.label} in {folder}",
        )
    )
    card = await asyncio.to_thread((folder / "README.md").read_text, "utf-8")
    await _shown(
        acreate_markdown_artifact(_as_shown(card), artifact_key("card", recipe), f"Card of dataset {manifest.label}")
    )


# ----------------------------------------------------------------------------------------------- training and evaluation


def show_models(what: str, description: str, models: Sequence[StudentResult], recipe: Recipe) -> None:
    """What was trained, now or before; `what` begins the key."""
    lines = [
        [
            model.label or model.card.variant,
            f"{model.card.parameters:,}",
            f"{model.card.steps:,}",
            format_duration(model.card.seconds),
            f"`{model.folder}`",
        ]
        for model in models
    ]
    table = _table(["student", "parameters", "steps", "trained for", "folder"], lines)
    try:
        create_markdown_artifact(table, artifact_key(what, recipe), description)
    except _TROUBLE as error:
        _tell(error)


def show_report(result: EvaluationResult, recipe: Recipe) -> None:
    """The report, what is wrong with the student first, and where its page with the plots lies."""
    text = markdown(result.report, narrow=True, page=_page(result.files))
    _show_report("report", f"Report of {recipe.name}", warnings(result.report), text, recipe)


def show_sweep(result: SweepEvaluation, recipe: Recipe) -> None:
    """The report of a sweep, what is wrong with its students first, and where its page with the plots lies."""
    words = f"Size against quality: the sweep of {recipe.name}"
    text = sweep_markdown(result.report, page=_page(result.files))
    _show_report("sweep", words, sweep_warnings(result.report), text, recipe)


def _page(files: ReportFiles) -> str:
    return _link("The report with its plots", str(files.html))


def _show_report(what: str, description: str, warnings: Sequence[str], text: str, recipe: Recipe) -> None:
    said = " ".join(warnings)
    try:
        create_markdown_artifact(text, artifact_key(what, recipe), f"{description}{f'. {said}' if said else ''}")
    except _TROUBLE as error:
        _tell(error)


def _link(words: str, place: str) -> str:
    """A link, and the place in full: a browser follows no link from a server's page to a file of its machine."""
    if place.startswith(("http://", "https://")):
        return f"[{words}]({place})"
    if "://" in place:
        return f"{words}: `{place}`"
    file = Path(place).resolve()
    return f"[{words}]({file.as_uri()}): `{file}`"


# ---------------------------------------------------------------------------------------------------------------- within


def _table(headers: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    def line(cells: Sequence[str]) -> str:
        return "| " + " | ".join(cell.replace("|", "\\|") for cell in cells) + " |"

    return "\n".join([line(headers), "|" + " --- |" * len(headers), *(line(row) for row in rows)])


def _as_shown(card: str) -> str:
    """A card as Prefect's pages show it well: without its front matter, and each paragraph in one line."""
    body = re.sub(r"\A---\n.*?\n---\n", "", card, count=1, flags=re.DOTALL)
    lines: list[str] = []
    fenced = False
    for line in body.splitlines():
        fenced ^= line.startswith("```")
        begun = bool(lines and lines[-1]) and not lines[-1].startswith(_WHOLE_LINES)
        if begun and line and not fenced and not line.startswith((*_WHOLE_LINES, "- ")):
            lines[-1] += f" {line.strip()}"
        else:
            lines.append(line)
    return "\n".join(lines)


async def _shown(showing: Awaitable[UUID]) -> UUID | None:
    """What it gives, or None where the server did not take it."""
    try:
        async with asyncio.timeout(_PATIENCE):
            return await showing
    except _TROUBLE as error:
        _tell(error)
        return None


def _tell(error: Exception) -> None:
    """The work is what counts: it goes on."""
    get_run_logger().warning("an artifact is not shown: %s: %s", type(error).__name__, error)

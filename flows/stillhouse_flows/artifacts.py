"""The Prefect artifacts of a run. The key of an artifact is `<stage>-<recipe>`:

    plan-quickstart         the estimate, before anything is sent: requests, cost, time
    labelling-quickstart    while labelling runs: progress, speed, cost, remaining time
    labels-quickstart       the number of rows, and of rejected ones
    card-quickstart         the dataset's card
    teacher-quickstart      the fine-tuned teacher, if the recipe has one
    students-quickstart     the trained students and their folders
    rounds-quickstart       the figures of the rounds so far, if the recipe has on_policy
    report-quickstart       the report, with the path of its HTML page
    sweep-quickstart        the report of a sweep, with the path of its HTML page

Artifacts are informative only: if the server cannot be reached, the run continues without them.
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
from stillhouse.evaluation.report.answer_warnings import warnings
from stillhouse.evaluation.report.report import ROUNDS_EXPLANATION, ReportFiles, markdown
from stillhouse.evaluation.report.tables import rounds_table
from stillhouse.evaluation.sweep.evaluate import SweepEvaluation
from stillhouse.evaluation.sweep.report import sweep_markdown
from stillhouse.evaluation.sweep.verdict import sweep_warnings
from stillhouse.formatting import format_duration, format_usd, markdown_table
from stillhouse.labelling.job import LabelJob
from stillhouse.labelling.metrics import Metrics
from stillhouse.labelling.parts import FOLDER as PARTS
from stillhouse.labelling.result import LabelResult
from stillhouse.recipe.recipe import Recipe
from stillhouse.student.finished.folder import StudentResult
from stillhouse.student.finished.rounds import RoundFigures

UPDATE_SECONDS = 10.0  # between two updates of the progress artifact
_SERVER_ERRORS = (httpx.HTTPError, PrefectException, OSError)  # the server cannot be reached, or rejects a request
_WHOLE_LINES = ("#", "|", "```")  # prefixes of Markdown lines that are not joined with others
_TIMEOUT = 10.0  # seconds for the server to accept an artifact


def artifact_key(stage: str, recipe: Recipe) -> str:
    """Return the key of one of a recipe's artifacts: lower-case letters, digits and dashes, as Prefect requires.

    A name with other characters gets a part of its hash, so that no two recipes share a key. The part of a dataset that a
    worker labels (pipeline/stillhouse/labelling/parts.py) has the recipe's name and its own keys: `part-labels-quickstart`.
    """
    name = re.sub(r"[^a-z0-9]+", "-", recipe.name.lower()).strip("-")
    if name != recipe.name:
        name += f"-{hashlib.sha256(recipe.name.encode()).hexdigest()[:6]}"
    is_part = recipe.dataset.root.rstrip("/").rpartition("/")[2] == PARTS
    return f"part-{stage}-{name}" if is_part else f"{stage}-{name}"


# ------------------------------------------------------------------------------------------------------------- labelling


async def publish_plan(job: LabelJob, recipe: Recipe) -> None:
    """Publish the estimate of labelling, as `stillhouse plan` prints it."""
    lines = (await asyncio.to_thread(job.estimate)).lines()
    await _published(
        acreate_markdown_artifact(
            "\n".join(markdown_table(["", "before anything is sent"], lines)),
            artifact_key("plan", recipe),
            f"What labelling {recipe.name} will send, cost and take",
        )
    )


@asynccontextmanager
async def publishing_progress(job: LabelJob, recipe: Recipe) -> AsyncIterator[None]:
    """Update an artifact with the job's progress every few seconds during the block, and once at its end."""
    ended = asyncio.Event()
    updates = asyncio.create_task(_publish_progress(job, artifact_key("labelling", recipe), ended))
    try:
        yield
    finally:
        ended.set()
        await updates


async def _publish_progress(job: LabelJob, key: str, ended: asyncio.Event) -> None:
    artifact: UUID | None = None
    while True:
        last = ended.is_set()
        metrics = job.metrics()
        percent, text = round(100 * metrics.share, 1), metrics_text(metrics)
        if artifact is None:
            artifact = await _published(acreate_progress_artifact(percent, key, text))
        else:
            await _published(aupdate_progress_artifact(artifact, percent, text))
        if last:
            return
        try:
            async with asyncio.timeout(UPDATE_SECONDS):
                await ended.wait()
        except TimeoutError:
            continue


def metrics_text(metrics: Metrics) -> str:
    """Return metrics of labelling as text: a summary line, which lists of artifacts show, and a Markdown table."""
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
    return "\n".join([f"Labelling: {metrics}", "", *markdown_table(["requests", ""], lines)])


async def publish_dataset(result: LabelResult, recipe: Recipe) -> None:
    """Publish the numbers of rows of a version, and its card."""
    manifest, folder = result.dataset.manifest, result.dataset.folder
    await _published(
        acreate_table_artifact(
            [{"rows": split, "count": f"{count:,}"} for split, count in manifest.rows.items()]
            + [{"rows": f"rejected: {reason}", "count": f"{count:,}"} for reason, count in manifest.rejected.items()],
            artifact_key("labels", recipe),
            f"Dataset {manifest.label} in {folder}",
        )
    )
    card = await asyncio.to_thread((folder / "README.md").read_text, "utf-8")
    await _published(
        acreate_markdown_artifact(_for_prefect(card), artifact_key("card", recipe), f"Card of dataset {manifest.label}")
    )


# ----------------------------------------------------------------------------------------------- training and evaluation


def publish_models(stage: str, description: str, models: Sequence[StudentResult], recipe: Recipe) -> None:
    """Publish the trained models, newly trained or not; `stage` is the start of the key."""
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
    table = "\n".join(markdown_table(["student", "parameters", "steps", "trained for", "folder"], lines))
    try:
        create_markdown_artifact(table, artifact_key(stage, recipe), description)
    except _SERVER_ERRORS as error:
        _log_failure(error)


def publish_rounds(rounds: Sequence[RoundFigures], recipe: Recipe) -> None:
    """Publish the figures of all rounds so far: the distance on both texts, and what the student writes."""
    headers, *rows = rounds_table(rounds)
    text = "\n".join([*markdown_table(headers, rows), "", ROUNDS_EXPLANATION])
    _publish_report("rounds", f"Rounds of {recipe.name}: {len(rounds)} so far", (), text, recipe)


def publish_report(result: EvaluationResult, recipe: Recipe) -> None:
    """Publish the report, warnings first, with the path of the HTML page with its plots."""
    text = markdown(result.report, narrow=True, page=_page(result.files))
    _publish_report("report", f"Report of {recipe.name}", warnings(result.report), text, recipe)


def publish_sweep(result: SweepEvaluation, recipe: Recipe) -> None:
    """Publish the report of a sweep, warnings first, with the path of the HTML page with its plots."""
    description = f"Size against quality: the sweep of {recipe.name}"
    text = sweep_markdown(result.report, page=_page(result.files))
    _publish_report("sweep", description, sweep_warnings(result.report), text, recipe)


def _page(files: ReportFiles) -> str:
    return _link("The report with its plots", str(files.html))


def _publish_report(stage: str, description: str, warnings: Sequence[str], text: str, recipe: Recipe) -> None:
    warned = " ".join(warnings)
    try:
        create_markdown_artifact(text, artifact_key(stage, recipe), f"{description}{f'. {warned}' if warned else ''}")
    except _SERVER_ERRORS as error:
        _log_failure(error)


def _link(words: str, place: str) -> str:
    """Return a link and the full path: a browser follows no link from a server's page to a local file."""
    if place.startswith(("http://", "https://")):
        return f"[{words}]({place})"
    if "://" in place:
        return f"{words}: `{place}`"
    file = Path(place).resolve()
    return f"[{words}]({file.as_uri()}): `{file}`"


# --------------------------------------------------------------------------------------------------------------- helpers


def _for_prefect(card: str) -> str:
    """Return a card for Prefect's pages: without front matter, and each paragraph in one line."""
    body = re.sub(r"\A---\n.*?\n---\n", "", card, count=1, flags=re.DOTALL)
    lines: list[str] = []
    fenced = False
    for line in body.splitlines():
        fenced ^= line.startswith("```")
        in_paragraph = bool(lines and lines[-1]) and not lines[-1].startswith(_WHOLE_LINES)
        if in_paragraph and line and not fenced and not line.startswith((*_WHOLE_LINES, "- ")):
            lines[-1] += f" {line.strip()}"
        else:
            lines.append(line)
    return "\n".join(lines)


async def _published(request: Awaitable[UUID]) -> UUID | None:
    """Return the artifact's id; None if the server did not accept it."""
    try:
        async with asyncio.timeout(_TIMEOUT):
            return await request
    except _SERVER_ERRORS as error:
        _log_failure(error)
        return None


def _log_failure(error: Exception) -> None:
    get_run_logger().warning("an artifact could not be published: %s: %s", type(error).__name__, error)

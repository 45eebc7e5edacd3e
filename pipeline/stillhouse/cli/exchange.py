"""`stillhouse datasets export | import | push`: datasets in other projects' formats, and on the Hugging Face hub."""

from __future__ import annotations

import dataclasses
from enum import StrEnum
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from stillhouse.cli import results
from stillhouse.cli.common import LABELS, AsJson, Root, print_error, reporting_errors
from stillhouse.cli.datasets import Into, Name, datasets_app

if TYPE_CHECKING:
    from stillhouse.exchange.imports import ImportCounts

_FORMATS = "trl, axolotl, distillkit, openai, sharegpt"


class Files(StrEnum):
    """File type of the rows."""

    JSONL = "jsonl"
    PARQUET = "parquet"


@datasets_app.command("export")
def datasets_export(
    name: Name,
    to: Annotated[str, typer.Option("--to", metavar="FORMAT", help=f"One of {_FORMATS}.")],
    out: Annotated[Path, typer.Option("--out", metavar="FOLDER", help="A new folder for the files, one per split.")],
    files: Annotated[
        Files | None, typer.Option("--files", help="File type of the rows. Default: the format's own.")
    ] = None,
    length: Annotated[
        int | None, typer.Option("--length", help="Tokens per row, for distillkit. Default: the longest row.")
    ] = None,
    force: Annotated[bool, typer.Option("--force", help="Replace a folder that an earlier export wrote.")] = False,
    root: Root = LABELS,
    as_json: AsJson = False,
) -> None:
    """Write a dataset in another project's format."""
    with reporting_errors(as_json):
        from stillhouse.cli.terminal import output
        from stillhouse.dataset.store import find_dataset
        from stillhouse.exchange.base import ExportOptions
        from stillhouse.exchange.export import export_dataset

        options = ExportOptions(files.value if files else None, length)
        done = export_dataset(find_dataset(root, name), to, out, options, force=force)
        if as_json:
            results.print_json(
                dataclasses.asdict(done) | {"folder": str(out), "files": [str(file) for file in done.files]}
            )
        else:
            output.print(f"export   {out}: {results.format_counts(done.rows)}", markup=False)
        if done.left_out:
            print_error(f"{done.left_out} rows were left out: {done.why_left_out}")
        for note in done.notes:
            print_error(note)


@datasets_app.command("import")
def datasets_import(
    format_: Annotated[str, typer.Argument(metavar="FORMAT", help=f"One of {_FORMATS}, openai-log.")],
    files: Annotated[list[Path], typer.Argument(metavar="FILE...", help="Files, or folders of them.")],
    into: Into,
    teacher: Annotated[
        str | None,
        typer.Option(
            "--teacher", metavar="MODEL", help="The model that wrote the answers, if the files do not name it."
        ),
    ] = None,
    tokenizer: Annotated[
        Path | None,
        typer.Option(
            "--tokenizer", metavar="FOLDER", help="For axolotl and distillkit: the tokenizer that made the ids."
        ),
    ] = None,
    validation: Annotated[
        float | None,
        typer.Option("--validation", help="Share of prompts to hold out. Default: from the files' names, or 0.1."),
    ] = None,
    base_url: Annotated[
        str | None,
        typer.Option(
            "--base-url", help="For openai-log: the API that answered. Default: OPENAI_BASE_URL, or OpenAI's."
        ),
    ] = None,
    root: Root = LABELS,
    as_json: AsJson = False,
) -> None:
    """Import answers as a dataset: from another project's files, or from a log of API requests."""
    with reporting_errors(as_json):
        import os

        from stillhouse.cli.terminal import output
        from stillhouse.exchange.imports import ImportRequest, import_dataset
        from stillhouse.exchange.openai_log import OPENAI_URL, LogReader
        from stillhouse.inputs.urls import check_base_url

        setting = "--base-url" if base_url else "OPENAI_BASE_URL"
        given = base_url or os.environ.get("OPENAI_BASE_URL", "").strip() or OPENAI_URL
        reader = LogReader(check_base_url(given, setting))
        request = ImportRequest(format_, files, root, into, teacher, tokenizer, validation, reader)
        done = import_dataset(request)
        manifest, counts = done.dataset.manifest, done.counts
        if as_json:
            results.print_json(
                results.manifest_json(manifest)
                | {
                    "folder": str(done.dataset.folder),
                    "left_out": dict(counts.skipped),
                    "known_keys": counts.keyed,
                }
                | {"unknown_keys": dict(counts.unkeyed)}
            )
        else:
            output.print(f"import   {done.dataset.folder}: {results.format_counts(manifest.rows)}", markup=False)
        _print_import_counts(counts)


@datasets_app.command("push")
def datasets_push(
    name: Name,
    to: Annotated[
        str, typer.Option("--to", metavar="USER/REPO", help="A dataset repository; created if it does not exist.")
    ],
    private: Annotated[bool, typer.Option("--private", help="Create it as a private repository.")] = False,
    root: Root = LABELS,
    as_json: AsJson = False,
) -> None:
    """Push a version to the Hugging Face hub, with its card; the token comes from HF_TOKEN."""
    with reporting_errors(as_json):
        from stillhouse.cli.terminal import output
        from stillhouse.dataset.store import find_dataset
        from stillhouse.exchange.push import push_dataset

        done = push_dataset(find_dataset(root, name), to, private=private)
        if as_json:
            results.print_json(dataclasses.asdict(done))
        else:
            gone = f", {len(done.removed)} of an earlier version removed" if done.removed else ""
            output.print(f"pushed   {done.url}: {len(done.files)} files{gone}", markup=False)
        if done.kept:
            print_error(f"{to} also has files that no push wrote; they are unchanged: {', '.join(done.kept[:3])}")


def _print_import_counts(counts: ImportCounts) -> None:
    for reason, count in counts.skipped.most_common():
        example = counts.examples.get(reason)
        print_error(f"left out: {count} {reason}" + (f", first {example}" if example else ""))
    if counts.keyed:
        print_error(
            f"{counts.keyed} rows have the keys of their requests: labelling into this dataset reuses them at no cost"
        )
    for why, count in counts.unkeyed.most_common():
        print_error(f"{count} rows cannot be reused by labelling: {why}")

"""`stillhouse datasets`: find, inspect, check, combine and remove labelled datasets."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from stillhouse.cli import results
from stillhouse.cli.common import LABELS, AsJson, Root, print_error, reporting_errors

if TYPE_CHECKING:
    from stillhouse.dataset.catalog import CatalogEntry
    from stillhouse.dataset.derive import Derived

datasets_app = typer.Typer(no_args_is_help=True, help="Find, inspect, check, combine and remove labelled datasets.")

Name = Annotated[str, typer.Argument(metavar="NAME", help="A dataset (its newest version), name/v001, or a folder.")]
Into = Annotated[str, typer.Option("--into", metavar="NAME", help="The dataset whose next version is written.")]


@datasets_app.command("list")
def datasets_list(root: Root = LABELS, as_json: AsJson = False) -> None:
    """List every finished version, by name; a damaged one is listed with its fault."""
    with reporting_errors(as_json):
        from stillhouse.cli.terminal import output
        from stillhouse.dataset.catalog import catalog
        from stillhouse.dataset.listing import catalog_lines, listed_json

        listed = catalog(root)
        if as_json:
            results.print_json({"datasets": [listed_json(one) for one in listed]})
        elif not listed:
            output.print(f"no finished dataset in {root}")
        else:
            _print_lines(catalog_lines(listed, output.width))


@datasets_app.command("show")
def datasets_show(
    name: Name,
    root: Root = LABELS,
    samples: Annotated[
        int | None,
        typer.Option("--samples", min=0, help="Rows to show.  [default: 3; 20 with --html]", show_default=False),
    ] = None,
    html: Annotated[Path | None, typer.Option("--html", metavar="FILE", help="Write an HTML page to browse.")] = None,
    tokenizer: Annotated[
        Path | None, typer.Option("--tokenizer", help="The teacher's folder, if it is not found automatically.")
    ] = None,
    as_json: AsJson = False,
) -> None:
    """Show a dataset: teacher, rows, rejections, lengths, the teacher's entropy, and some samples."""
    with reporting_errors(as_json):
        from dataclasses import asdict

        from stillhouse.cli.terminal import output
        from stillhouse.dataset import listing
        from stillhouse.dataset.card import read_reasons
        from stillhouse.dataset.samples import pick_samples
        from stillhouse.dataset.statistics import measure_dataset
        from stillhouse.dataset.store import find_dataset
        from stillhouse.dataset.token_texts import find_token_texts
        from stillhouse.storage.location import tree_size

        dataset = find_dataset(root, name)
        manifest, size = dataset.manifest, tree_size(dataset.folder)
        found, reasons = measure_dataset(dataset), read_reasons(dataset.folder, manifest)
        if html is not None:
            from stillhouse.dataset.browse import render_page, write_page

            texts = find_token_texts(manifest, tokenizer)
            rows = pick_samples(dataset, 20 if samples is None else samples, texts)
            page = render_page(dataset, rows, found, reasons, size, texts.note)
            write_page(html, page)
        if as_json:
            result = manifest.model_dump(mode="json") | {"folder": str(dataset.folder), "statistics": asdict(found)}
            results.print_json(result | ({"html": str(html)} if html else {}))
        elif html is not None:
            output.print(f"{manifest.label}: {html}", markup=False)
        else:
            from stillhouse.cli.terminal import show_pairs

            output.print(manifest.label, markup=False, style="bold")
            show_pairs(listing.version_facts(manifest, size))
            rejected = sum(reasons.values())
            _print_lines(
                [f"rejected     {rejected:,}" if rejected else "rejected     none", *listing.reason_lines(reasons)]
            )
            _print_lines(["", *listing.statistics_lines(found, manifest)])
            rows = pick_samples(dataset, 3 if samples is None else samples, find_token_texts(manifest, tokenizer))
            _print_lines(listing.sample_lines(rows, min(output.width, 100)))


@datasets_app.command("verify")
def datasets_verify(name: Name, root: Root = LABELS, as_json: AsJson = False) -> None:
    """Check every file, its rows and the manifest against their checksums; exit status 1 if one differs."""
    with reporting_errors(as_json):
        from stillhouse.cli.terminal import output
        from stillhouse.dataset.store import find_dataset

        dataset = find_dataset(root, name)
        label, files = dataset.manifest.label, len(dataset.manifest.files)
        problems = dataset.problems()
        if as_json:
            results.print_json({"dataset": label, "files": files, "problems": problems})
        elif not problems:
            output.print(f"{label}: {files} Parquet files and all other files match their checksums")
        for problem in [] if as_json else problems:
            print_error(f"{label}: {problem}")
        if problems:
            raise typer.Exit(1)


@datasets_app.command("merge")
def datasets_merge(
    names: Annotated[
        list[str], typer.Argument(metavar="NAME NAME...", help="Datasets; of rows with the same id, the first is kept.")
    ],
    into: Into,
    text_only: Annotated[bool, typer.Option("--text-only", help="Leave out soft labels and token ids.")] = False,
    licence: Annotated[
        str | None, typer.Option("--licence", help="Licence for the card. Default: the licence that all of them have.")
    ] = None,
    prefer: Annotated[
        str | None,
        typer.Option(
            "--prefer", metavar="NAME", help="Dataset whose rows are kept if versions answer a prompt differently."
        ),
    ] = None,
    root: Root = LABELS,
    as_json: AsJson = False,
) -> None:
    """Merge datasets into a new version, each row once; a prompt that one of them holds out stays held out."""
    with reporting_errors(as_json):
        from stillhouse.dataset.merge import merge
        from stillhouse.dataset.store import find_dataset

        datasets = [find_dataset(root, name) for name in names]
        _print_derived(merge(datasets, root, into, text_only=text_only, licence=licence, prefer=prefer), as_json)


@datasets_app.command("ensemble")
def datasets_ensemble(
    names: Annotated[
        list[str], typer.Argument(metavar="NAME NAME...", help="One dataset of each teacher, for the same completions.")
    ],
    into: Into,
    weights: Annotated[
        str | None, typer.Option("--weights", metavar="W,W,...", help="Weights, such as 2,1. Default: all the same.")
    ] = None,
    root: Root = LABELS,
    as_json: AsJson = False,
) -> None:
    """Average the soft labels of several teachers of the same completions, and write a new version."""
    with reporting_errors(as_json):
        from stillhouse.dataset.ensemble import ensemble
        from stillhouse.dataset.store import find_dataset

        numbers = None if weights is None else _numbers(weights)
        datasets = [find_dataset(root, name) for name in names]
        _print_derived(ensemble(datasets, root, into, numbers), as_json)


@datasets_app.command("filter")
def datasets_filter(
    name: Name,
    where: Annotated[
        str, typer.Option("--where", help='A condition on the columns, such as "completion_tokens < 200".')
    ],
    into: Into,
    root: Root = LABELS,
    as_json: AsJson = False,
) -> None:
    """Write the rows for which a condition is true as a new version."""
    with reporting_errors(as_json):
        from stillhouse.dataset.derive import filter_rows
        from stillhouse.dataset.store import find_dataset

        _print_derived(filter_rows(find_dataset(root, name), root, into, where), as_json)


@datasets_app.command("split")
def datasets_split(
    name: Name,
    validation: Annotated[float, typer.Option("--validation", help="Share of prompts to hold out, such as 0.1.")],
    into: Into,
    root: Root = LABELS,
    as_json: AsJson = False,
) -> None:
    """Split the rows again, by prompt, and write them as a new version."""
    with reporting_errors(as_json):
        from stillhouse.dataset.derive import resplit
        from stillhouse.dataset.store import find_dataset

        _print_derived(resplit(find_dataset(root, name), root, into, validation), as_json)


@datasets_app.command("rm")
def datasets_rm(
    name: Annotated[str, typer.Argument(metavar="NAME/V001", help="A version; a name alone if it has only one.")],
    every: Annotated[bool, typer.Option("--all", help="Remove every version of the name.")] = False,
    yes: Annotated[bool, typer.Option("--yes", "-y", help="Do not ask for confirmation.")] = False,
    root: Root = LABELS,
    as_json: AsJson = False,
) -> None:
    """Remove a version for good; refused if another version was made from it, or while a run is writing it."""
    with reporting_errors(as_json):
        from stillhouse.cli.terminal import output
        from stillhouse.dataset.catalog import find_versions, remove

        listed = find_versions(root, name, every=every)
        if not remove(root, listed, lambda: yes or _confirmed(listed)):
            results.print_json({"removed": [], "bytes": 0}) if as_json else output.print("nothing was removed")
            raise typer.Exit(1)
        if as_json:
            results.print_json({"removed": [one.label for one in listed], "bytes": sum(one.bytes for one in listed)})
        else:
            output.print(f"removed {', '.join(one.label for one in listed)}", markup=False)


# ---------------------------------------------------------------------------------------------------------------- pieces


def _print_derived(derived: Derived, as_json: bool) -> None:
    from dataclasses import asdict

    manifest = derived.dataset.manifest
    if as_json:
        result = results.manifest_json(manifest) | {
            "folder": str(derived.dataset.folder),
            "parents": list(manifest.parents),
        }
        differing = {
            "prompts": len(derived.disagreements.prompts),
            "examples": [asdict(example) for example in derived.disagreements.examples],
        }
        results.print_json(result | {"counts": derived.counts, "notes": list(derived.notes), "differing": differing})
    else:
        _print_lines(
            [f"{manifest.label}: {results.format_counts(manifest.rows)}", *(f"  {note}" for note in derived.notes)]
        )


def _numbers(weights: str) -> list[float]:
    """Parse numbers separated by commas."""
    from stillhouse.errors import UsageError

    try:
        return [float(one) for one in weights.split(",")]
    except ValueError:
        raise UsageError(
            "it is not a list of numbers", setting="--weights", value=weights, fix="give numbers such as 2,1"
        ) from None


def _confirmed(listed: list[CatalogEntry]) -> bool:
    """Ask for confirmation, which needs a terminal."""
    from stillhouse.dataset.listing import removal_lines
    from stillhouse.errors import UsageError

    for line in removal_lines(listed):
        print_error(line)
    if not sys.stdin.isatty():
        raise UsageError(
            "removal needs a confirmation, and there is no terminal to ask on", fix="add --yes to confirm it"
        )
    return typer.confirm("Remove for good?", err=True)


def _print_lines(lines: list[str]) -> None:
    from stillhouse.cli.terminal import output

    for line in lines:
        output.print(line, markup=False)

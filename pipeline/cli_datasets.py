"""`stillhouse datasets`: find, inspect and check labelled datasets."""

from __future__ import annotations

from pathlib import Path

import typer

from pipeline import shown
from pipeline.cli_common import AsJson, Root, errors_told

datasets_app = typer.Typer(no_args_is_help=True, help="Find, inspect and check labelled datasets.")


@datasets_app.command("list")
def datasets_list(root: Root = Path("data/labels"), as_json: AsJson = False) -> None:
    """Every finished version, by name."""
    with errors_told():
        from pipeline.dataset.store import all_datasets
        from pipeline.terminal import output, show_table

        manifests = [dataset.manifest for dataset in all_datasets(root)]
        if as_json:
            shown.print_json({"datasets": [shown.manifest_json(manifest) for manifest in manifests]})
        elif not manifests:
            output.print(f"no finished dataset in {root}")
        else:
            rows = [
                [
                    m.label,
                    m.teacher.model,
                    shown.counted(m.rows),
                    str(sum(m.rejected.values())),
                    m.soft.encoding if m.soft else "text",
                    m.created_at,
                ]
                for m in manifests
            ]
            show_table(["dataset", "teacher", "rows", "rejected", "labels", "made"], rows)


@datasets_app.command("show")
def datasets_show(name: str, root: Root = Path("data/labels"), as_json: AsJson = False) -> None:
    """What a dataset is: its teacher, rows, cost, and files."""
    with errors_told():
        from pipeline.dataset.card import render_card
        from pipeline.dataset.store import find_dataset
        from pipeline.terminal import output

        manifest = find_dataset(root, name).manifest
        if as_json:
            shown.print_json(manifest.model_dump(mode="json"))
        else:
            output.print(render_card(manifest).partition("---\n\n")[2], markup=False)


@datasets_app.command("verify")
def datasets_verify(name: str, root: Root = Path("data/labels"), as_json: AsJson = False) -> None:
    """Check every file against the manifest's checksums; exit status 1 if one differs."""
    with errors_told():
        from pipeline.dataset.store import find_dataset
        from pipeline.terminal import errors, output

        dataset = find_dataset(root, name)
        problems = dataset.problems()
        if as_json:
            shown.print_json(
                {"dataset": dataset.manifest.label, "files": len(dataset.manifest.files), "problems": problems}
            )
        elif not problems:
            output.print(f"{dataset.manifest.label}: {len(dataset.manifest.files)} files, all as they were written")
        for problem in [] if as_json else problems:
            errors.print(f"{dataset.manifest.label}: {problem}", markup=False)
        if problems:
            raise typer.Exit(1)

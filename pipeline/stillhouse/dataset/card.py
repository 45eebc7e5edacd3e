"""Write the README.md of a dataset version: a Hugging Face dataset card.

The card can be published unchanged. It states which teacher wrote the rows and from which prompts, what was rejected and
why, the cost, the accuracy of the soft labels, and what the dataset should not be used for. Its layout is card.md.j2.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping
from functools import cache
from importlib.resources import files as package_files
from typing import Any

import jinja2
import yaml

from stillhouse.dataset.encodings.top_k import error_bound
from stillhouse.dataset.files import open_parquet
from stillhouse.dataset.manifest import Manifest
from stillhouse.formatting import escape_table_cell, without_local_folders
from stillhouse.inputs.plain_json import to_json
from stillhouse.recipe.label import SoftSettings
from stillhouse.records import TeacherIdentity
from stillhouse.storage.durable import write_atomically
from stillhouse.storage.location import Location

_MADE_BY = {
    "label": "labelled",
    "merge": "merged from other versions",
    "filter": "filtered from another version",
    "split": "re-split from another version",
    "ensemble": "averaged from versions of several teachers",
    "import": "imported",
}
Reasons = Mapping[tuple[str, str], int]  # (stage, reason) -> rows


def write_card(folder: Location, manifest: Manifest) -> None:
    """Write the card of a version; its Parquet files must exist already."""
    write_atomically(folder / "README.md", render_card(manifest, read_reasons(folder, manifest)).encode())


def render_card(manifest: Manifest, reasons: Reasons | None = None) -> str:
    """Return the card's text; without `reasons`, rejections come from the manifest and have no stage."""
    reasons = reasons if reasons is not None else {("", reason): count for reason, count in manifest.rejected.items()}
    front = yaml.safe_dump(_front_matter(manifest), sort_keys=False, allow_unicode=True)
    recipe = manifest.recipe
    body = _template().render(
        manifest=manifest,
        made=_MADE_BY[manifest.made_by],
        teachers=[describe_teacher(one) for one in (manifest.teacher, *manifest.more_teachers)],
        rows=sum(manifest.rows.values()),
        prompts_from={"source": None, "template": None} | (recipe.get("prompts") or {}),
        sampling=settings_line(manifest.sampling.model_dump() if manifest.sampling else {}),
        samples=(recipe.get("label") or {}).get("samples", 1),
        exactness=describe_label_error(manifest.soft) if manifest.soft else None,
        filters=[_filter(one) for one in recipe.get("quality") or ()],
        reasons=sorted(reasons.items()),
        cost=_cost(manifest),
    )
    return f"---\n{front}---\n\n{body.rstrip()}\n"


@cache
def _template() -> jinja2.Template:
    environment = jinja2.Environment(undefined=jinja2.StrictUndefined, trim_blocks=True, lstrip_blocks=True)
    environment.filters |= {"escape_table_cell": escape_table_cell, "without_local_folders": without_local_folders}
    return environment.from_string(package_files("stillhouse.dataset").joinpath("card.md.j2").read_text("utf-8"))


def read_reasons(folder: Location, manifest: Manifest) -> Reasons:
    """Count the rejected rows by stage and reason, read from the Parquet files."""
    found: Counter[tuple[str, str]] = Counter()
    for entry in manifest.files:
        if entry.kind == "rejected":
            with open_parquet(folder / entry.path) as parquet:
                table = parquet.read(columns=["stage", "reason"])
            found.update(zip(table["stage"].to_pylist(), table["reason"].to_pylist(), strict=True))
    return found


def describe_label_error(soft: SoftSettings) -> str:
    """Describe the error of the soft labels relative to the teacher's distribution."""
    if soft.encoding == "sampled":
        draws = soft.draws or 1
        return (
            f"{draws} random draws with replacement from the teacher's full distribution at every position: count / draws "
            "is an unbiased estimate of each probability p, with a standard error of sqrt(p (1 - p) / draws), "
            f"{0.5 / draws**0.5:.3f} at most."
        )
    k = soft.k or 0
    return (
        f"the {k} most likely tokens at every position. A stored log-probability is off by at most 1/256 for tokens above "
        f"a probability of 1/4, and by at most 1/16 for the rarest; over the {k + 1} outcomes ({k} tokens, and all others "
        "together) the KL divergence from the teacher's values to the stored ones is at most "
        f"{error_bound(k):.5g} nats. The total mass of all other tokens is stored, its distribution among them "
        "is not."
    )


# --------------------------------------------------------------------------------------------------------------- helpers


def _front_matter(manifest: Manifest) -> dict[str, Any]:
    data_files = [{"split": split, "path": f"data/{split}-*.parquet"} for split in manifest.rows]
    licence = {"license": manifest.licence.lower()} if manifest.licence else {}
    return {
        "pretty_name": manifest.label,
        **licence,
        "tags": ["distillation", "synthetic", "stillhouse"],
        "task_categories": ["text-generation"],
        "size_categories": [_size_category(sum(manifest.rows.values()))],
        "configs": [{"config_name": "default", "data_files": data_files}],
    }


def _size_category(rows: int) -> str:
    """Return the hub's size category: n<1K, 1K<n<10K, and so on."""
    steps = ["1K", "10K", "100K", "1M", "10M", "100M", "1B", "10B", "100B", "1T"]
    place = next((place for place in range(len(steps)) if rows < 1000 * 10**place), len(steps))
    if place == 0:
        return f"n<{steps[0]}"
    return f"{steps[place - 1]}<n<{steps[place]}" if place < len(steps) else f"n>{steps[-1]}"


def describe_teacher(teacher: TeacherIdentity) -> str:
    """Describe a teacher's identity: name, kind, and the revision, endpoint, weights and fingerprint that are known."""
    name = f"`{escape_table_cell(without_local_folders(teacher.model) or teacher.kind)}`"
    known = [
        f"kind {teacher.kind}",
        "an encoder-decoder" if teacher.encoder_decoder else "",
        f"revision {teacher.revision}" if teacher.revision else "",
        f"at {teacher.endpoint}" if teacher.endpoint else "",
        f"weights {teacher.content_sha256[:12]}…" if teacher.content_sha256 else "",
        f"fingerprint {teacher.fingerprint}" if teacher.fingerprint else "",
        "" if teacher.revision or teacher.content_sha256 else "revision unknown",
    ]
    return f"{name} ({escape_table_cell(', '.join(part for part in known if part))})"


def _filter(settings: Mapping[str, Any]) -> str:
    options = settings_line({key: value for key, value in settings.items() if key != "kind"})
    return f"{settings.get('kind')}" + (f" ({options})" if options else "")


def _cost(manifest: Manifest) -> str:
    totals = manifest.totals
    if totals.cost_usd is None:
        return "unknown"
    spent = totals.spent_usd
    more = (
        f" for these rows; ${spent:,.4f} was spent on this dataset so far, including failed attempts" if spent else ""
    )
    return f"${totals.cost_usd:,.4f}{more}"


def settings_line(settings: Mapping[str, Any]) -> str:
    """Format settings on one line, without the unset ones."""
    return ", ".join(
        f"{key} {value if isinstance(value, str) else to_json(value)}"
        for key, value in settings.items()
        if value is not None
    )

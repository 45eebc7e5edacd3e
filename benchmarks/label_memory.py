"""Memory, time and bytes on disk of labelling, from a thousand prompts to a million; and of planning a million.

The scripted teacher answers immediately, so the figures are those of Stillhouse itself. Each run is a separate process,
started by this small one; its peak resident memory is the kernel's figure after it has ended.
"""

from __future__ import annotations

from pathlib import Path

from benchmarks.shared import (
    MIB,
    STILLHOUSE,
    DiskWatch,
    Ended,
    bytes_in,
    measured_on,
    run,
    scratch,
    table,
    versions_of,
    write_prompts,
    write_recipe,
)

SIZES = (1_000, 10_000, 100_000, 1_000_000)
SHARD_SIZE = 1000
PLAN_SECONDS, PLAN_BYTES = 90, 1 << 30  # targets for `stillhouse plan` at the largest size


def measure(small: bool) -> str:
    """Return the section as Markdown."""
    sizes = SIZES[:2] if small else SIZES
    rows = []
    for size in sizes:
        with scratch() as folder:
            recipe = _recipe(folder, size)
            with DiskWatch(folder / "labels") as watch:
                ended = run([*STILLHOUSE, "label", recipe, "--no-flow", "--json"], folder / "log.txt")
            told = ended.last_json
            if (told["sent"], sum(told["rows"].values())) != (size, size):
                raise SystemExit(f"{size} prompts, and the run told {told}")
            left = bytes_in(folder / "labels")
        print(f"label {size:,}: {ended.peak_bytes / MIB:,.0f} MiB, {ended.seconds:.1f} s", flush=True)
        disk = [f"{watch.most / MIB:,.1f}", f"{left / MIB:,.1f}", f"{left / size:,.0f}"]
        rows.append([*_cells(size, ended), f"{size / ended.seconds:,.0f}", *disk])
    with scratch() as folder:
        planned = run([*STILLHOUSE, "plan", _recipe(folder, sizes[-1])], folder / "log.txt")
    return "\n\n".join(
        [
            f"`stillhouse label` with the scripted teacher, text only, {SHARD_SIZE:,} prompts a shard. Memory is the "
            "peak of resident memory, and seconds are those of the whole process. On the disk, the journal holds every "
            "answer until the manifest is there, so the folder is largest just before the end.",
            table(
                ["prompts", "memory, MiB", "seconds", "prompts/s", "most disk, MiB", "left, MiB", "bytes a row"],
                rows,
            ),
            f"`stillhouse plan` (wanted: less than {PLAN_SECONDS} s and {PLAN_BYTES / MIB:,.0f} MiB):",
            table(["prompts", "memory, MiB", "seconds"], [_cells(sizes[-1], planned)]),
            measured_on(versions_of("pyarrow", "orjson")),
        ]
    )


def _recipe(folder: Path, prompts: int) -> Path:
    file = write_prompts(folder / "prompts.jsonl", prompts)
    return write_recipe(folder, file, teacher={"kind": "scripted"}, shard_size=SHARD_SIZE, concurrency=128)


def _cells(size: int, ended: Ended) -> list[str]:
    return [f"{size:,}", f"{ended.peak_bytes / MIB:,.0f}", f"{ended.seconds:,.1f}"]

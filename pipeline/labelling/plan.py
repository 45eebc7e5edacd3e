"""What a recipe asks for: every prompt, its requests, the shards they fall into, and the name of the whole.

Planning reads prompts and hashes them; it sends nothing and writes nothing.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property

from pipeline.config import Recipe
from pipeline.errors import PromptError
from pipeline.prompts import read_prompts, split_of
from pipeline.records import Prompt, Split, TeacherIdentity, content_hash
from pipeline.teachers.base import Request


@dataclass(frozen=True)
class Shard:
    """The unit of work and of commit: some prompts of one split, and one Parquet file."""

    split: Split
    index: int  # among the shards of its split
    of: int
    requests: tuple[Request, ...]

    @cached_property
    def ids(self) -> list[str]:
        return [request.key for request in self.requests]


@dataclass(frozen=True)
class LabelPlan:
    """Every request of a recipe. `sha256` names the dataset version that it makes."""

    shards: tuple[Shard, ...]
    prompts: int
    duplicate_prompts: int
    prompts_sha256: str
    sha256: str

    @property
    def requests(self) -> int:
        return sum(len(shard.requests) for shard in self.shards)

    def ids(self) -> Iterator[str]:
        """Every request's key, in order."""
        for shard in self.shards:
            yield from shard.ids


def make_plan(recipe: Recipe, teacher: TeacherIdentity) -> LabelPlan:
    """Read the prompts, leave out repeated ones, and cut the rest into shards.

    The plan's name covers requests, order, splits, references and filters. How the work is cut and paced (shard size,
    concurrency, limits) is no part of it.

    Raises:
        PromptError: a prompt cannot be read, or has no reference where the mode needs one.
    """
    by_split: dict[Split, list[Prompt]] = {"train": [], "validation": []}
    seen: set[str] = set()
    duplicates = 0
    for prompt in read_prompts(recipe.prompts):
        if prompt.id in seen:
            duplicates += 1
            continue
        seen.add(prompt.id)
        by_split[split_of(prompt, recipe.prompts.holdout)].append(prompt)
    shards = [shard for split, prompts in by_split.items() for shard in _shards(recipe, teacher, split, prompts)]
    read = [[prompt.id, prompt.reference] for prompts in by_split.values() for prompt in prompts]
    asked = [[split, [key for shard in shards if shard.split == split for key in shard.ids]] for split in by_split]
    filters = [one.model_dump() for one in recipe.quality]
    return LabelPlan(
        shards=tuple(shards),
        prompts=len(seen),
        duplicate_prompts=duplicates,
        prompts_sha256=content_hash(read),
        sha256=content_hash([asked, read, filters]),
    )


def _shards(recipe: Recipe, teacher: TeacherIdentity, split: Split, prompts: Sequence[Prompt]) -> list[Shard]:
    size = recipe.label.shard_size
    parts = [prompts[start : start + size] for start in range(0, len(prompts), size)]
    return [
        Shard(split, index, len(parts), tuple(_requests(recipe, teacher, part))) for index, part in enumerate(parts)
    ]


def _requests(recipe: Recipe, teacher: TeacherIdentity, prompts: Sequence[Prompt]) -> Iterator[Request]:
    label = recipe.label
    for prompt in prompts:
        if label.mode == "score" and prompt.reference is None:
            raise PromptError(
                f"label.mode is 'score', and the prompt {prompt.text[:60]!r} has no reference to score: "
                "add one to its row, name its column in prompts.reference, or set label.mode to 'generate'"
            )
        for sample in range(label.samples):
            yield Request(
                prompt=prompt,
                sample=sample,
                teacher=teacher,
                sampling=label.sampling,
                soft=label.soft,
                forced=prompt.reference if label.mode == "score" else None,
            )

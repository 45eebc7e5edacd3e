"""The plan of a recipe: every prompt, its requests, the shards they are divided into, and a hash of it all.

    >>> with make_plan(recipe, TeacherIdentity("scripted", "x")) as plan:
    ...     [len(plan.shard(number).requests) for number in range(plan.shards)]    # of the train and validation splits
    [9, 3]

Planning reads and hashes prompts; it sends nothing and writes nothing permanent. The prompts are kept in a temporary
database, so memory does not grow with their number, and changes to the source during a run have no effect on it.
"""

from __future__ import annotations

import hashlib
import logging
import math
import threading
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property, partial
from types import TracebackType
from typing import Any

import orjson

from stillhouse.dataset.manifest import Manifest
from stillhouse.errors import PromptError
from stillhouse.labelling.former_names import Former, FormerNames, GetNote, Renaming
from stillhouse.labelling.tokens import likely_prompt_tokens, most_prompt_tokens
from stillhouse.plugins import FILTERS, plugin_code_key
from stillhouse.prompts.checks import PromptChecks
from stillhouse.prompts.load import read_prompts, split_of
from stillhouse.recipe.recipe import Recipe
from stillhouse.records import SPLITS, Message, Prompt, Split, TeacherIdentity, content_hash
from stillhouse.storage.temporary_database import temporary_database
from stillhouse.teachers.base import AnswerSettings, Forced, Request

_LOG = logging.getLogger(__name__)

_CREATE = f"""
CREATE TABLE ids (id BLOB PRIMARY KEY, continues INTEGER NOT NULL, reference BLOB) WITHOUT ROWID;
CREATE TABLE scored (key BLOB PRIMARY KEY) WITHOUT ROWID;  -- used in score mode
CREATE TABLE matched (key BLOB PRIMARY KEY) WITHOUT ROWID;
{"".join(f"CREATE TABLE {split} (position INTEGER PRIMARY KEY, body BLOB NOT NULL);" for split in SPLITS)}
"""
_CACHE_KIB = 1 << 16  # memory of the temporary database
_IDS_PER_QUERY = 500
_MAX_LISTED_ROWS = 5  # row numbers listed in a warning
_CONTINUE_FIX = (
    "set teacher.options.continue_body to the fields that make the API continue such a turn (vLLM and SGLang: "
    "{continue_final_message: true, add_generation_prompt: false}; {} if it needs none), or set prompts.last_turn to "
    "'reference', or use a teacher of kind transformers or vllm"
)


@dataclass(frozen=True)
class Shard:
    """The unit of work and of commit: some prompts of one split, written to one Parquet file."""

    number: int  # position among all shards
    split: Split
    index: int  # position among the shards of its split
    shard_count: int  # shards in its split
    requests: tuple[Request, ...]

    @cached_property
    def ids(self) -> list[str]:
        return [request.key for request in self.requests]


@dataclass(frozen=True)
class ShardName:
    """The position of a shard, without its requests."""

    number: int
    split: Split
    index: int
    shard_count: int


class LabelPlan:
    """Every request of a recipe. `sha256` identifies the dataset version that it makes.

    In score mode a prompt has one request for each of its references: the reference is part of the request's key, so each
    pair has its own key, independent of the prompt's other references. Otherwise a prompt is planned once, with its first
    reference.
    """

    def __init__(self, recipe: Recipe, answer_settings: AnswerSettings, former: Sequence[Former] = ()) -> None:
        self.answer_settings = answer_settings
        self.former = tuple(former)  # other names under which answers may be stored
        self.prompts = 0  # in score mode, (prompt, reference) pairs
        self.duplicate_prompts = 0
        self.other_references = 0  # rows that repeat a prompt with a different reference
        self.first_other_references: list[int] = []  # row numbers of the first of them
        self.scores_tokens = recipe.prompts.score_tokens is not None
        self.worst_prompt_tokens = 0  # sum over all requests
        self.likely_prompt_tokens = 0
        self._label = recipe.label
        self._filters = [one.model_dump() | plugin_code_key(FILTERS, one.kind) for one in recipe.quality]
        self._counts = dict.fromkeys(SPLITS, 0)
        self._digests = {split: hashlib.sha256() for split in SPLITS}
        self._lock = threading.Lock()  # guards the store: several threads read shards
        self._store = temporary_database(_CREATE, cache_kib=_CACHE_KIB)

    def __enter__(self) -> LabelPlan:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        with self._lock:
            self._store.close()

    def add(self, prompt: Prompt, split: Split, row: int | None = None) -> None:
        """Add one prompt, unless it is a duplicate; `row` is its number in the source, for error messages.

        Raises:
            PromptError: the prompt ends with an assistant's turn, which this teacher cannot continue.
        """
        described = f"the prompt {prompt.text[:60]!r}" + ("" if row is None else f" of row {row}")
        if prompt.continues and self.answer_settings.teacher.continuing is None:
            raise PromptError(
                f"{described} ends with an assistant's turn, which this teacher is not known to continue",
                setting="teacher.kind",
                value=self.answer_settings.teacher.kind,
                fix=_CONTINUE_FIX,
            )
        id_ = bytes.fromhex(prompt.id)
        if not self._is_new(prompt, id_, row):
            self.duplicate_prompts += 1
            return
        try:
            turns = [[turn.role, turn.content] for turn in prompt.messages]
            body = orjson.dumps([turns, prompt.reference, prompt.tokens_to_score])
        except TypeError as error:
            raise PromptError(f"{described} cannot be stored: {error}", fix="correct its row") from None
        self._store.execute(f"INSERT INTO {split} VALUES (?, ?)", (self._counts[split], body))
        self._digests[split].update(
            id_ + (b"" if prompt.reference is None else b"=" + _bytes(prompt.reference)) + _scored(prompt) + b"\0"
        )
        self._counts[split] += 1
        self.prompts += 1
        first = next(self.requests_of(prompt))
        self.worst_prompt_tokens += most_prompt_tokens(first) * self._label.samples
        self.likely_prompt_tokens += likely_prompt_tokens(first) * self._label.samples

    def _is_new(self, prompt: Prompt, id_: bytes, row: int | None) -> bool:
        """Record a prompt and return whether it adds requests that no earlier prompt had."""
        reference = None if prompt.reference is None else hashlib.sha256(_bytes(prompt.reference)).digest()
        row_of = (id_, prompt.continues, reference)
        is_first = self._store.execute("INSERT OR IGNORE INTO ids VALUES (?, ?, ?)", row_of).rowcount > 0
        if self._label.mode == "score":
            key = bytes.fromhex(next(self.requests_of(prompt)).key)
            return self._store.execute("INSERT OR IGNORE INTO scored VALUES (?)", (key,)).rowcount > 0
        if not is_first and reference is not None:
            (first,) = self._store.execute("SELECT reference FROM ids WHERE id = ?", (id_,)).fetchone()
            if first != reference:
                self.other_references += 1
                if row is not None and len(self.first_other_references) < _MAX_LISTED_ROWS:
                    self.first_other_references.append(row)
        return is_first

    @property
    def requests(self) -> int:
        return self.prompts * self._label.samples

    @property
    def prompts_sha256(self) -> str:
        """A hash of the prompts as read: content, order, split, reference."""
        return content_hash([self._digests[split].hexdigest() for split in SPLITS])

    @property
    def sha256(self) -> str:
        """A hash of requests, order, splits, references and filters, including the code of plug-in filters.

        Shard size, concurrency and limits are not part of it.
        """
        return self.sha256_with(self.answer_settings)

    def sha256_with(self, answer_settings: AnswerSettings) -> str:
        """Return the plan's hash if its requests had these settings, as in a version made under a former name."""
        return content_hash(
            [answer_settings.id, self._label.mode, self._label.samples, self.prompts_sha256, self._filters]
        )

    def settings_of_version(self, manifest: Manifest, get_note: GetNote) -> AnswerSettings | Former | None:
        """Return the answer settings with which this plan made the version; None if another plan made it."""
        if manifest.plan_sha256 == self.sha256:
            return self.answer_settings
        former = FormerNames(self.former, get_note).valid_for(manifest.recipe)
        return next((one for one in former if manifest.plan_sha256 == self.sha256_with(one.answer_settings)), None)

    # ---------------------------------------------------------------------------------------------------------- shards

    @cached_property
    def names(self) -> list[ShardName]:
        """Every shard, in the order in which they are written: the train split first."""
        listed: list[ShardName] = []
        for split in SPLITS:
            shard_count = math.ceil(self._counts[split] / self._label.shard_size)
            listed += [ShardName(len(listed) + index, split, index, shard_count) for index in range(shard_count)]
        return listed

    @property
    def shards(self) -> int:
        return len(self.names)

    def requests_in(self, number: int) -> int:
        """Return the number of requests in a shard, without reading it."""
        name = self.names[number]
        prompts = min(self._label.shard_size, self._counts[name.split] - name.index * self._label.shard_size)
        return prompts * self._label.samples

    def shard(self, number: int) -> Shard:
        """Read one shard with its requests."""
        name = self.names[number]
        first = name.index * self._label.shard_size
        query = f"SELECT body FROM {name.split} WHERE position >= ? AND position < ? ORDER BY position"
        with self._lock:
            rows = self._store.execute(query, (first, first + self._label.shard_size)).fetchall()
        requests = tuple(request for (body,) in rows for request in self.requests_of(_prompt(body)))
        return Shard(name.number, name.split, name.index, name.shard_count, requests)

    def ids(self) -> Iterator[str]:
        """Yield every request's key, in order."""
        for number in range(self.shards):
            yield from self.shard(number).ids

    def has(self, prompts: Iterable[str]) -> bool:
        """Whether the plan contains any of these prompt ids."""
        query = "SELECT 1 FROM ids WHERE id = ?"
        return any(self._store.execute(query, (bytes.fromhex(id_),)).fetchone() for id_ in prompts)

    def match_rows(
        self,
        rows: Sequence[tuple[str, str, int, Forced | None]],
        *,
        stored_with: AnswerSettings | None = None,
        rejections: bool = False,
    ) -> list[str | None]:
        """Match rows to the requests that they answer; each request matches once.

        A row is (key, prompt id, sample, text), with the token ids instead of the text if the plan scores token ids. A row
        without a text is not an answer, unless `rejections` is set.

        Args:
            rows: rows of a dataset.
            stored_with: the answer settings with which their keys were made; None for the plan's.
            rejections: whether rows without a text count.

        Returns:
            For each row, the key of its request in this plan; None if it answers none, or one that was matched before.
        """
        answer_settings = stored_with or self.answer_settings
        known: dict[bytes, int] = {}  # prompt id -> whether it continues an assistant turn
        prompts = list({bytes.fromhex(prompt) for _, prompt, _, _ in rows})
        for start in range(0, len(prompts), _IDS_PER_QUERY):
            part = prompts[start : start + _IDS_PER_QUERY]
            marks = ",".join("?" * len(part))
            known |= dict(self._store.execute(f"SELECT id, continues FROM ids WHERE id IN ({marks})", part))
        matched: list[str | None] = []
        for key, prompt, sample, text in rows:
            forced = text if self._label.mode == "score" else None
            continues = known.get(bytes.fromhex(prompt))
            matches = (
                (rejections or text is not None)
                and sample < self._label.samples
                and continues is not None
                and key == answer_settings.key(prompt, sample, forced, continues=bool(continues))
            )
            current_key = self.answer_settings.key(prompt, sample, forced, continues=bool(continues)) if matches else ""
            new = (
                matches
                and self._store.execute(
                    "INSERT OR IGNORE INTO matched VALUES (?)", (bytes.fromhex(current_key),)
                ).rowcount
                > 0
            )
            matched.append(current_key if new else None)
        return matched

    def renamings(self) -> Iterator[Renaming]:
        """Yield, for each shard, a function from answer settings to {key with those settings: current key}."""
        for number in range(self.shards):
            requests = self.shard(number).requests
            yield partial(_renamed, requests)

    def requests_of(self, prompt: Prompt) -> Iterator[Request]:
        """Yield a prompt's requests, one per sample."""
        forced: Forced | None = None
        if self._label.mode == "score":
            forced = prompt.reference if prompt.tokens_to_score is None else prompt.tokens_to_score
        for sample in range(self._label.samples):
            yield Request(prompt, sample, self.answer_settings, forced)


def make_plan(
    recipe: Recipe, teacher: TeacherIdentity, former: Sequence[Former] = (), checks: PromptChecks | None = None
) -> LabelPlan:
    """Read the prompts, check them, drop duplicates, and divide them into shards, all in one pass.

    Args:
        recipe: the recipe to plan.
        teacher: the teacher's identity, which is part of each request's key.
        former: the teacher's former names.
        checks: checks of the prompts; None for the recipe's.

    Raises:
        PromptError: a prompt cannot be read, lacks something that the recipe needs, or ends with an assistant's turn that
            this teacher cannot continue.
        RecipeError: the first prompt begins with none of the task prefixes in the teacher's config.
        TeacherUnavailable: the teacher's config cannot be found.
    """
    checks = checks or PromptChecks(recipe)
    plan = LabelPlan(recipe, AnswerSettings.from_label(teacher, recipe.label), former)
    try:
        for row, prompt in enumerate(read_prompts(recipe.prompts), start=1):
            checks.check(row, prompt)
            plan.add(prompt, split_of(prompt, recipe.prompts.holdout), row)
        checks.finish()
    except BaseException:
        plan.__exit__(None, None, None)
        raise
    if plan.other_references:
        _LOG.warning(
            "%s repeats prompts with a different reference: row %s%s (%s in all). A prompt is sent once and keeps its "
            "first reference; with label.mode: score, each reference is a row of its own.",
            recipe.prompts.source,
            ", ".join(map(str, plan.first_other_references)),
            ", ..." if plan.other_references > _MAX_LISTED_ROWS else "",
            f"{plan.other_references:,}",
        )
    return plan


def _bytes(text: str) -> bytes:
    return text.encode("utf-8", "surrogatepass")


def _scored(prompt: Prompt) -> bytes:
    """Return what the plan's hash has of the tokens to score."""
    return b"" if prompt.tokens_to_score is None else b"~" + ",".join(map(str, prompt.tokens_to_score)).encode()


def _renamed(requests: Sequence[Request], answer_settings: AnswerSettings) -> dict[str, str]:
    """Return {key with the given answer settings: current key}."""
    return {one.key_under(answer_settings): one.key for one in requests}


def _prompt(body: bytes) -> Prompt:
    turns: list[list[Any]]
    turns, reference, tokens = orjson.loads(body)
    messages = tuple(Message(role, content) for role, content in turns)
    return Prompt(messages, reference, None if tokens is None else tuple(tokens))

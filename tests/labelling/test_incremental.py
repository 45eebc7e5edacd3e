"""Only what is new is sent: what is part of a request, and what becomes of answers when prompts are edited."""

import asyncio
import json
import shutil
import tempfile
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from stillhouse.dataset.columns import completion_at
from stillhouse.dataset.store import Dataset, dataset_folder, versions
from stillhouse.errors import TeacherUnavailable
from stillhouse.labelling import engine
from stillhouse.labelling import new_version as version
from stillhouse.labelling.engine import label
from stillhouse.labelling.plan import make_plan
from stillhouse.labelling.result import LabelResult
from stillhouse.prompts.load import split_of
from stillhouse.recipe.recipe import Recipe, recipe_from
from stillhouse.records import Message, Prompt
from stillhouse.teachers.base import Outcome, Request, Teacher, open_teacher
from tests.conftest import WORDS, MakeRecipe
from tests.rows import rows_by_prompt
from tests.stand_in import running_stand_in

# ---------------------------------------------------------------------------------------------------- what a request is

API = {"kind": "openai", "model": "gpt-4o-mini", "options": {"base_url": "http://127.0.0.1:1/v1"}}
SCHEMA = {"type": "json_schema", "json_schema": {"name": "x", "schema": {"type": "object"}}}


def recipe_with(file: Path, **parts: Any) -> Recipe:
    """A recipe with an `openai` teacher; each part's keys replace those of the plain one."""
    plain: dict[str, Any] = {
        "prompts": {"source": str(file), "system": "Be brief."},
        "teacher": API,
        "label": {"sampling": {"temperature": 0.7}},
        "dataset": {"root": str(file.parent), "name": "x"},
    }
    merged = {name: {**value, **parts.get(name, {})} for name, value in plain.items()}
    return recipe_from({"name": "x", **parts, **merged}, "test")


def keys(recipe: Recipe) -> set[str]:
    teacher = open_teacher(recipe.teacher, recipe.label, recipe.seed)
    with make_plan(recipe, teacher.identity) as plan:
        return set(plan.ids())


@pytest.fixture
def two_prompts(tmp_path: Path) -> Path:
    file = tmp_path / "two.jsonl"
    rows = [{"prompt": f"Question {n}?", "reference": f"Answer {n}.", "other": f"Other {n}."} for n in range(2)]
    file.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return file


@pytest.mark.parametrize(
    "parts",
    [
        {"prompts": {"system": "Be long."}},
        {"prompts": {"system": None}},
        {"teacher": {"model": "gpt-4o"}},
        {"teacher": {"revision": "2024-07-18"}},
        {"teacher": {"options": {"base_url": "http://127.0.0.1:2/v1"}}},
        {"teacher": {"options": {**API["options"], "api": "completions"}}},  # type: ignore[dict-item]
        {"teacher": {"options": {**API["options"], "extra_body": {"seed": 1}}}},  # type: ignore[dict-item]
        {"label": {"sampling": {"temperature": 0.8}}},
        {"label": {"sampling": {"temperature": 0.7, "top_p": 0.9}}},
        {"label": {"sampling": {"temperature": 0.7, "max_tokens": 64}}},
        {"label": {"sampling": {"temperature": 0.7}, "top_logprobs": 3}},
        {"label": {"sampling": {"temperature": 0.7}, "response_format": SCHEMA}},
    ],
    ids=str,
)
def test_what_shapes_an_answer_makes_it_another_request(two_prompts: Path, parts: dict[str, Any]) -> None:
    assert keys(recipe_with(two_prompts)).isdisjoint(keys(recipe_with(two_prompts, **parts)))


@pytest.mark.parametrize(
    "parts",
    [
        {"teacher": {"price": {"input_usd_per_million": 1, "output_usd_per_million": 1}}},
        {"teacher": {"options": {**API["options"], "timeouts": {"read": 5}}}},  # type: ignore[dict-item]
        {"teacher": {"options": {"base_url": "http://127.0.0.1:1/v1/"}}},
        {"label": {"sampling": {"temperature": 0.7}, "concurrency": 1, "shard_size": 1, "patience": 5}},
        {"label": {"sampling": {"temperature": 0.7}, "limits": {"requests_per_minute": 5, "tokens_per_minute": 500}}},
        {"label": {"sampling": {"temperature": 0.7}, "budget_usd": 5, "max_rejected": 1}},
        {"prompts": {"reference": "other"}},
        {"prompts": {"holdout": 0.9}},
        {"quality": [{"kind": "empty"}]},
        {"seed": 5, "name": "y", "dataset": {"name": "y"}},
    ],
    ids=str,
)
def test_what_shapes_no_answer_leaves_it_the_same_request(two_prompts: Path, parts: dict[str, Any]) -> None:
    assert keys(recipe_with(two_prompts)) == keys(recipe_with(two_prompts, **parts))


def test_more_samples_are_more_requests_and_the_first_ones_stay(two_prompts: Path) -> None:
    one, three = (
        keys(recipe_with(two_prompts, label={"sampling": {"temperature": 0.7}, "samples": samples}))
        for samples in (1, 3)
    )
    assert one < three
    assert (len(one), len(three)) == (2, 6)


# ------------------------------------------------------------------------------------------- what becomes of the answers


class Answering:
    """A teacher of one request a call that leaves after so many answers; `answered` is what it answered."""

    def __init__(self, inner: Teacher, answered: list[Request], leaves_after: int | None) -> None:
        self._inner, self._answered, self._left = inner, answered, leaves_after
        self.identity, self.batch_size, self.parallel, self.price = inner.identity, 1, None, inner.price

    async def answer(self, requests: Sequence[Request]) -> Sequence[Outcome]:
        if self._left is not None:
            self._left -= 1
            if self._left < 0:
                raise TeacherUnavailable("the teacher left")
        await asyncio.sleep(0)
        self._answered.extend(requests)
        return await self._inner.answer(requests)

    async def close(self) -> None:
        pass


def run(recipe: Recipe, answered: list[Request], leaves_after: int | None = None) -> LabelResult | None:
    """Label; None where the teacher left before the end."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(
            engine, "open_teacher", lambda *arguments: Answering(open_teacher(*arguments), answered, leaves_after)
        )
        try:
            return asyncio.run(label(recipe))
        except TeacherUnavailable:
            return None


def done(recipe: Recipe, answered: list[Request]) -> LabelResult:
    result = run(recipe, answered)
    assert result is not None
    return result


def words(*requests: Request) -> list[str]:
    return [request.prompt.text.removeprefix("Explain ").removesuffix(".") for request in requests]


def write_words(file: Path, listed: Sequence[str]) -> None:
    file.write_text("".join(json.dumps({"word": word, "reference": f"A {word} is a thing."}) + "\n" for word in listed))


def test_a_plan_changed_between_stop_and_resume_keeps_what_both_runs_paid_for(
    scripted_recipe: MakeRecipe, word_prompts: Path
) -> None:
    asked: list[Request] = []
    done(scripted_recipe(), asked)
    write_words(word_prompts, [*WORDS, "anchor", "basket", "candle", "donkey"])
    assert run(scripted_recipe(), asked, leaves_after=2) is None
    answered = set(words(*asked[12:]))
    assert len(answered) == 2
    write_words(word_prompts, ["engine", *reversed(WORDS[3:]), "anchor", "basket", "candle", "donkey"])
    second = done(scripted_recipe(), asked)
    assert set(words(*asked[14:])) == {"engine", "anchor", "basket", "candle", "donkey"} - answered
    assert (second.sent, second.reused) == (3, 11)
    assert second.dataset.manifest.label == "words/v002"
    assert second.dataset.manifest.parents == ("words/v001",)
    assert second.dataset.problems() == []


def test_an_unchanged_plan_takes_over_once_and_still_knows_its_parents(
    scripted_recipe: MakeRecipe, word_prompts: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked: list[Request] = []
    done(scripted_recipe(), asked)
    write_words(word_prompts, [*WORDS, "anchor", "basket"])
    assert run(scripted_recipe(), asked, leaves_after=1) is None
    with monkeypatch.context() as patch:
        patch.setattr(version, "copy_earlier_answers", None)  # is not called
        second = done(scripted_recipe(), asked)
    assert (second.sent, second.reused) == (1, 13)
    assert second.dataset.manifest.parents == ("words/v001",)


@pytest.mark.parametrize(
    ("listed", "parts", "parents"),
    [
        (["anchor", "basket"], {}, ()),  # nothing in common with any version
        ([*WORDS[:2], "basket"], {}, ("words/v001",)),
        ([*WORDS[:2], "anchor", "basket"], {}, ("words/v001", "words/v002")),
        (WORDS, {"label": {"shard_size": 4, "soft": {"k": 4}}}, ()),
        (WORDS, {"label": {"shard_size": 4}}, ()),  # no soft labels wanted: the rows have other columns
    ],
)
def test_parents_are_the_versions_that_answers_came_from(
    scripted_recipe: MakeRecipe, word_prompts: Path, listed: list[str], parts: dict[str, Any], parents: tuple[str, ...]
) -> None:
    asked: list[Request] = []
    done(scripted_recipe(), asked)
    write_words(word_prompts, ["anchor"])
    assert done(scripted_recipe(quality=[{"kind": "length", "max_chars": 1}]), asked).dataset.manifest.rejected
    write_words(word_prompts, [word for word in listed if parents or word != "anchor"])
    assert done(scripted_recipe(**parts), asked).dataset.manifest.parents == parents


def test_a_version_that_is_deleted_is_made_again_from_the_one_before(
    scripted_recipe: MakeRecipe, word_prompts: Path
) -> None:
    asked: list[Request] = []
    done(scripted_recipe(), asked)
    write_words(word_prompts, [*WORDS, "anchor"])
    second = done(scripted_recipe(), asked)
    shutil.rmtree(second.dataset.folder)
    again = done(scripted_recipe(), asked)
    assert (again.sent, again.reused) == (1, 12)
    assert words(*asked[13:]) == ["anchor"]
    assert again.dataset.manifest.parents == ("words/v001",)


def test_going_back_to_earlier_prompts_sends_nothing(scripted_recipe: MakeRecipe, word_prompts: Path) -> None:
    asked: list[Request] = []
    for listed in (WORDS, WORDS[:4], WORDS, WORDS[2:]):
        write_words(word_prompts, listed)
        done(scripted_recipe(), asked)
    assert len(asked) == 12
    assert versions(dataset_folder(scripted_recipe().dataset)) == [1, 2, 3, 4]


def test_fewer_and_more_samples_send_only_what_was_never_answered(scripted_recipe: MakeRecipe) -> None:
    asked: list[Request] = []
    sent = [
        done(scripted_recipe(label={"samples": samples, "soft": {"k": 8}, "shard_size": 5}), asked).sent
        for samples in (2, 1, 3, 2)
    ]
    assert sent == [24, 0, 12, 0]
    assert max(Counter(request.key for request in asked).values()) == 1


def test_what_the_teacher_rejected_with_an_answer_stays_rejected_and_is_not_paid_again(api_recipe: MakeRecipe) -> None:
    first = ["Name a colour.", "Name nothing. !empty*", "Too long. !400long*"]
    with running_stand_in() as server:
        result = asyncio.run(label(api_recipe(server.base_url, first)))
        assert result.dataset.manifest.rejected == {"empty": 1, "too-long": 1}
        again = asyncio.run(label(api_recipe(server.base_url, [*first, "Name a tree."])))
        assert server.stats.billed == {"Name a colour.": 1, "Name nothing. !empty*": 1, "Name a tree.": 1}
    assert again.dataset.manifest.rejected == {"empty": 1, "too-long": 1}
    rows = rows_by_prompt(again.dataset)
    assert [rows[prompt]["reason"] for prompt in [*first, "Name a tree."]] == [None, "empty", "too-long", None]
    assert again.dataset.manifest.parents == ("api/v001",)


@pytest.mark.parametrize("reference", [None, "", "Another."])
def test_a_reference_is_today_s_even_where_it_is_empty_or_gone(
    scripted_recipe: MakeRecipe, word_prompts: Path, reference: str | None
) -> None:
    asked: list[Request] = []
    refused = {"kind": "scripted", "options": {"vocabulary": 64, "refuse": ["Explain tram."]}}
    for value in ("First.", None, "", reference):
        rows = [{"word": word, "reference": value} for word in ("kettle", "tram", "sofa")]
        word_prompts.write_text("".join(json.dumps(row) + "\n" for row in rows))
        result = done(scripted_recipe(teacher=refused, quality=[{"kind": "length", "max_chars": 20}]), asked)
    found = {prompt: row["reference"] for prompt, row in rows_by_prompt(result.dataset).items()}
    assert found == dict.fromkeys(["Explain kettle.", "Explain tram.", "Explain sofa."], reference or None)


# ---------------------------------------------------------------------------------------------- any edits, and any stops


class Row(NamedTuple):
    """One line of the prompt file."""

    word: str
    reference: str | None


class Run(NamedTuple):
    """One run of the engine, after an edit."""

    prompts: list[Row]
    leaves_after: int | None
    shard_size: int
    concurrency: int


rows = st.builds(Row, st.sampled_from(WORDS[:8]), st.sampled_from([None, "one", "two"]))
runs = st.builds(
    Run,
    prompts=st.lists(rows, min_size=1, max_size=12),  # of so few words that each list repeats, drops and reorders some
    leaves_after=st.none() | st.integers(0, 6),
    shard_size=st.integers(1, 5),
    concurrency=st.integers(1, 8),
)


def asked_for(prompts: Sequence[Row]) -> list[Prompt]:
    """What a prompt file asks for: its first line of each prompt, those to learn from first."""
    first: dict[str, Prompt] = {}
    for row in prompts:
        first.setdefault(row.word, Prompt((Message("user", row.word),), row.reference))
    return sorted(first.values(), key=lambda prompt: split_of(prompt, 0.3) == "validation")


def rows_in(dataset: Dataset) -> list[tuple[Prompt, int]]:
    return [
        (row.prompt, row.sample)
        for split in ("train", "validation")
        for batch in dataset.batches(split)  # type: ignore[arg-type]
        for row in (completion_at(batch, index) for index in range(batch.num_rows))
    ]


@settings(max_examples=15)
@given(listed=st.lists(runs, min_size=1, max_size=5), samples=st.integers(1, 2))
def test_whatever_is_edited_and_wherever_it_stops_nothing_is_asked_twice(listed: list[Run], samples: int) -> None:
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        answered: list[Request] = []
        known: set[tuple[str, int]] = set()  # what was ever answered
        for one in [*listed, listed[-1]._replace(leaves_after=None)]:
            source = folder / "prompts.jsonl"
            source.write_text(
                "".join(json.dumps({"prompt": row.word, "reference": row.reference}) + "\n" for row in one.prompts)
            )
            recipe = recipe_from(
                {
                    "name": "x",
                    "prompts": {"source": str(source), "holdout": 0.3},
                    "teacher": {"kind": "scripted"},
                    "label": {"samples": samples, "shard_size": one.shard_size, "concurrency": one.concurrency},
                    "dataset": {"root": str(folder), "name": "x"},
                },
                "test",
            )
            wanted = [(prompt, sample) for prompt in asked_for(one.prompts) for sample in range(samples)]
            new = {(prompt.id, sample) for prompt, sample in wanted} - known
            before = len(answered)
            result = run(recipe, answered, one.leaves_after)
            now = Counter((request.prompt.id, request.sample) for request in answered[before:])
            assert set(now) <= new and set(now.values()) <= {1}
            known |= set(now)
            assert (result is None) == (one.leaves_after is not None and one.leaves_after < len(new))
            if result is not None:
                assert set(now) == new
                assert (result.sent, result.reused) == (len(new), len(wanted) - len(new))
                assert rows_in(result.dataset) == wanted
                assert result.dataset.problems() == []

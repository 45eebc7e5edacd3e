"""Datasets that an earlier release wrote (tests/earlier): what was paid for is found, under the teachers' names of today.

That release named local weights by samples of their files, left the seed out of a key, named a vLLM teacher by its weights
only while `check.parity` was on, and left out how a server of ours computes. tests/earlier/README.md says more.
"""

from __future__ import annotations

import asyncio
import json
import shutil
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq
import pytest

from stillhouse.labelling.engine import label
from stillhouse.labelling.estimate import estimate_labelling
from stillhouse.labelling.plan import make_plan
from stillhouse.labelling.result import LabelResult
from stillhouse.models import files as model_files
from stillhouse.models.files import ModelFiles
from stillhouse.progress import Progress
from stillhouse.recipe.load import load_recipe
from stillhouse.recipe.recipe import Recipe
from stillhouse.teachers.base import Answer, AnswerSettings, Request, open_teacher
from stillhouse.teachers.transformers import TransformersTeacher
from stillhouse.teachers.vllm import VllmTeacher
from tests.paths import EARLIER

KEYS = json.loads((EARLIER / "keys.json").read_text())  # computed by that release
FINISHED = ["scripted", "greedy", "seeded", "unseeded", "draws", "parity", "no-parity", "served"]
NO_PARITY = "teacher.options.check={parity: false}"


@pytest.fixture
def earlier(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A working folder as that release left it."""
    folder = tmp_path / "earlier"
    shutil.copytree(EARLIER, folder)
    monkeypatch.chdir(folder)
    monkeypatch.setattr(model_files, "_SAMPLED_WHOLE", 0)  # the model is named as one of many gigabytes is
    return folder


@pytest.fixture
def vllm(monkeypatch: pytest.MonkeyPatch) -> list[Request]:
    """Requests that reach a vLLM teacher, which answers without a server."""
    asked: list[Request] = []

    async def answer(self: VllmTeacher, requests: Sequence[Request]) -> list[Answer]:
        asked.extend(requests)
        return [Answer("another answer", "stop", 3, 3) for _ in requests]

    async def prepare(self: VllmTeacher, progress: Progress) -> None:
        """There is no server."""

    monkeypatch.setattr(VllmTeacher, "answer", answer)
    monkeypatch.setattr(VllmTeacher, "prepare", prepare)
    return asked


def recipe_of(name: str, *overrides: str) -> Recipe:
    return load_recipe(f"recipes/{name}.yaml", overrides)


def labelled(name: str, *overrides: str) -> LabelResult:
    """Label, and see that `plan` foretold what is sent."""
    recipe = recipe_of(name, *overrides)
    foretold = estimate_labelling(recipe).to_send
    result = asyncio.run(label(recipe))
    assert result.sent == foretold
    return result


def rows(folder: Path) -> dict[tuple[str, int], dict[str, Any]]:
    """A version's rows, by prompt and sample."""
    listed = [row for file in sorted((folder / "data").glob("*.parquet")) for row in pq.read_table(file).to_pylist()]
    return {(row["prompt_id"], row["sample"]): row for row in listed}


def edit_weights(model: Path) -> None:
    """Change one weight where an earlier release took a sample too, so that the samples differ."""
    file = model / "model.safetensors"
    content = bytearray(file.read_bytes())
    content[-1] ^= 1
    file.write_bytes(content)


@pytest.mark.parametrize("name", FINISHED)
def test_nothing_new_is_asked_of_a_finished_dataset(earlier: Path, vllm: list[Request], name: str) -> None:
    result = labelled(name)
    assert (result.fresh, result.sent) == (False, 0)
    assert result.dataset.manifest.plan_sha256 == KEYS[name]["plan"]
    assert str(result) == f"nothing to do: {name}/v001 already has answers to all 6 prompts"
    assert vllm == []


@pytest.mark.parametrize("name", FINISHED)
def test_what_is_added_is_asked_and_the_rest_taken_over_as_it_is(earlier: Path, vllm: list[Request], name: str) -> None:
    before = rows(earlier / f"labels/{name}/v001")
    with (earlier / "words.jsonl").open("a") as file:
        file.write(json.dumps({"word": "tram", "reference": "A tram is a thing."}) + "\n")
    samples = recipe_of(name).label.samples
    result = labelled(name)
    assert (result.fresh, result.sent, result.reused) == (True, samples, 6 * samples)
    assert result.dataset.manifest.parents == (f"{name}/v001",)
    after = rows(earlier / f"labels/{name}/v002")
    assert len(after) == len(before) + samples
    for place, row in before.items():
        assert after[place] | {"id": None} == row | {"id": None}
    recipe = recipe_of(name)
    terms = AnswerSettings.from_label(open_teacher(recipe.teacher, recipe.label, recipe.seed).identity, recipe.label)
    assert all(
        row["id"] == terms.key(prompt, sample, row["reference"] if recipe.label.mode == "score" else None)
        for (prompt, sample), row in after.items()
    ), "rows that were taken over have the keys of today"
    assert labelled(name).fresh is False


def test_the_journal_of_a_run_that_was_stopped_counts(earlier: Path) -> None:
    result = labelled("interrupted")
    assert (result.fresh, result.sent, result.reused) == (True, 4, 2)
    assert labelled("interrupted").fresh is False


def test_another_seed_gets_no_answers_of_the_first(earlier: Path) -> None:
    assert labelled("interrupted", "seed=6").sent == 6
    assert labelled("interrupted", "seed=5").sent == 4, "the two in the journal were drawn with seed 5"
    assert labelled("seeded", "seed=0").sent == 12
    assert labelled("seeded", "seed=5").sent == 0
    assert labelled("draws", "seed=1").sent == 6
    assert labelled("unseeded", "seed=1").sent == 6
    assert labelled("unseeded").sent == 0
    assert labelled("unseeded", "seed=1").sent == 0


def test_a_seed_is_no_part_of_answers_that_are_not_drawn(earlier: Path) -> None:
    assert labelled("greedy", "seed=7").fresh is False
    assert labelled("scripted", "seed=7").fresh is False


@pytest.mark.parametrize("name", ["parity", "no-parity"])
@pytest.mark.parametrize(
    "setting",
    [
        "teacher.options.check={parity: true}",
        NO_PARITY,
        "teacher.options.check={kl: 0.5, largest: 3.0}",
        "teacher.options.base_urls=['http://127.0.0.1:1/v1', 'http://127.0.0.1:2/v1']",
        "teacher.options.timeouts={read: 5}",
        "teacher.options.served_name=tiny",
        "teacher.options.api_key_env=OTHER_KEY",
        "label.concurrency=3",
    ],
)
def test_settings_of_a_vllm_teacher_that_shape_no_answer_ask_nothing(
    earlier: Path, vllm: list[Request], name: str, setting: str
) -> None:
    assert labelled(name, setting).fresh is False
    assert vllm == []


@pytest.mark.parametrize(
    ("setting", "sent"),
    [
        ("max_num_seqs=3", 0),
        ("max_model_len=128", 0),
        ("enforce_eager=true", 0),
        ("startup_seconds=3", 0),
        ("port=4321", 0),
        ("dtype=float32", 6),
        ("dtype=auto", 6),
        ("quantization=fp8", 6),
    ],
)
def test_how_a_server_of_ours_computes_shapes_its_answers(
    earlier: Path, vllm: list[Request], setting: str, sent: int
) -> None:
    assert labelled("served", f"teacher.options.serve.{setting}").sent == len(vllm) == sent
    assert labelled("served").sent == 0
    assert labelled("served", f"teacher.options.serve.{setting}").sent == 0


def test_a_server_that_runs_already_and_one_of_ours_share_their_answers(earlier: Path, vllm: list[Request]) -> None:
    running = ["teacher.options={base_urls: ['http://127.0.0.1:9/v1']}"]
    assert labelled("served", *running).sent == 0
    assert labelled("parity", "teacher.options={serve: {dtype: float32}}").sent == 0


@pytest.mark.parametrize("first", ["teacher.options.check={parity: true}", NO_PARITY])
def test_without_the_weights_a_model_is_known_by_its_name(earlier: Path, vllm: list[Request], first: str) -> None:
    """The weights may lie on the server alone: parity is off, and what was labelled before is found all the same."""
    assert labelled("parity", first, "prompts.limit=5").sent == 0
    (earlier / "model/model.safetensors").rename(earlier / "elsewhere.safetensors")
    assert labelled("parity", NO_PARITY).sent == 0
    assert labelled("no-parity", NO_PARITY).fresh is False
    assert labelled("no-parity", NO_PARITY, "dataset.name=third").sent == 6
    (earlier / "elsewhere.safetensors").rename(earlier / "model/model.safetensors")
    assert labelled("no-parity", "teacher.options.check={parity: true}", "dataset.name=third").sent == 0


@pytest.mark.parametrize("name", ["greedy", "seeded", "parity", "no-parity"])
def test_weights_that_are_edited_once_a_name_was_used_are_another_teacher(
    earlier: Path, vllm: list[Request], caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch, name: str
) -> None:
    """The old name is made the same for both, as that of a large file is where no sample was taken."""
    requests = 6 * recipe_of(name).label.samples
    sampled = ModelFiles("model", earlier / "model").sampled_sha256
    monkeypatch.setattr(ModelFiles, "sampled_sha256", sampled)
    assert labelled(name).sent == 0
    told = [record.getMessage() for record in caplog.records if "earlier name" in record.getMessage()]
    assert len(told) == 1 and told[0].startswith(f"{name}/v001: the answers are stored under an earlier name")
    assert labelled(name).sent == 0
    assert len([one for one in caplog.records if "earlier name" in one.getMessage()]) == 1, "it is told once"
    kept = (earlier / "model/model.safetensors").read_bytes()
    edit_weights(earlier / "model")
    assert labelled(name).sent == requests
    (earlier / "model/model.safetensors").write_bytes(kept)
    assert labelled(name).sent == 0


@pytest.mark.parametrize(
    ("name", "terms"),
    [
        ("scripted", "ddcfd7f1103419d798ea44ce6ac749d8"),
        ("greedy", "a0c55c549cb58cf7bad316a5997b179f"),
        ("parity", "d10b225f41f4f39a5c13144bb085540d"),
        ("no-parity", "d10b225f41f4f39a5c13144bb085540d"),  # as with parity: it says nothing of answers
    ],
)
def test_keys_that_said_all_are_what_they_were(
    earlier: Path, monkeypatch: pytest.MonkeyPatch, name: str, terms: str
) -> None:
    """Those without a seed, of weights that were read whole: each is in `keys.json` too."""
    monkeypatch.setattr(model_files, "_SAMPLED_WHOLE", 1 << 22)
    recipe = recipe_of(name)
    teacher = open_teacher(recipe.teacher, recipe.label, recipe.seed)
    assert AnswerSettings.from_label(teacher.identity, recipe.label).id == terms
    assert terms in [one["terms"] for one in KEYS.values()]


@pytest.mark.parametrize("name", FINISHED)
def test_nothing_new_is_asked_of_a_small_model_either(
    earlier: Path, vllm: list[Request], monkeypatch: pytest.MonkeyPatch, name: str
) -> None:
    monkeypatch.setattr(model_files, "_SAMPLED_WHOLE", 1 << 22)
    assert labelled(name).fresh is False
    assert vllm == []


@pytest.mark.parametrize("name", ["seeded", "unseeded", "draws"])
def test_a_seed_draws_what_it_drew_in_that_release(earlier: Path, name: str) -> None:
    """Draws begin with the seed and the key that a request had then."""
    recipe = recipe_of(name)
    teacher = open_teacher(recipe.teacher, recipe.label, recipe.seed)
    assert isinstance(teacher, TransformersTeacher)
    with make_plan(recipe, teacher.identity) as plan:
        requests = [request for number in range(plan.shards) for request in plan.shard(number).requests]
    begun = {(one.prompt.id, one.sample): teacher._seeding_key(one) for one in requests}
    assert begun == {place: row["id"] for place, row in rows(earlier / f"labels/{name}/v001").items()}

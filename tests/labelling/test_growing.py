"""A source that grows: each run asks only what is new, versions chain, and a run with nothing new does nothing."""

import asyncio
import json
import subprocess
import time
from collections import Counter
from collections.abc import Callable, Sequence
from pathlib import Path
from random import Random
from typing import Any

import pytest

from stillhouse.cli.results import print_student
from stillhouse.dataset.manifest import Manifest
from stillhouse.dataset.store import Dataset, dataset_folder, open_dataset, versions
from stillhouse.errors import StudentMissing
from stillhouse.labelling import engine
from stillhouse.labelling.engine import label, open_job
from stillhouse.labelling.plan import LabelPlan
from stillhouse.labelling.result import LabelResult
from stillhouse.recipe.recipe import Recipe
from stillhouse.stages import stages
from stillhouse.student.finished.folder import StudentResult
from tests.conftest import WORDS, MakeRecipe
from tests.labelling.test_durability import CONCURRENCY, command, completed, durable_ids, until
from tests.rows import rows_by_prompt
from tests.stand_in import Stats, running_stand_in

RUNS = 10
NEW = 24  # prompts that the source gains before each run
RecipeFile = Callable[[Recipe], Path]


def write_words(file: Path, words: Sequence[str]) -> None:
    file.write_text("".join(json.dumps({"word": word, "reference": f"A {word} is a thing."}) + "\n" for word in words))


def labelled(recipe: Recipe) -> LabelResult:
    return asyncio.run(label(recipe))


def tree(folder: Path) -> dict[str, bytes]:
    """Every file of a dataset but its lock and its journal."""
    files = (file for file in folder.rglob("*") if file.is_file())
    return {str(file): file.read_bytes() for file in files if file.name[:7] not in (".lock", "journal")}


# ---------------------------------------------------------------------------------------------------- one after another


def test_each_version_of_a_growing_source_has_the_one_before_as_its_parent(
    scripted_recipe: MakeRecipe, word_prompts: Path
) -> None:
    results = []
    for count in (6, 8, 12):
        write_words(word_prompts, WORDS[:count])
        results.append(labelled(scripted_recipe()))
    assert [(result.sent, result.reused, result.fresh) for result in results] == [
        (6, 0, True),
        (2, 6, True),
        (4, 8, True),
    ]
    assert [result.dataset.manifest.parents for result in results] == [(), ("words/v001",), ("words/v002",)]
    assert str(results[2]) == "words/v003, from words/v002: 4 requests sent, 8 answered before"


def test_a_prompt_that_comes_back_has_its_answer_from_the_version_that_has_it(
    scripted_recipe: MakeRecipe, word_prompts: Path
) -> None:
    for words in (WORDS[:6], WORDS[3:9], WORDS[:10]):
        write_words(word_prompts, words)
        last = labelled(scripted_recipe())
    assert (last.sent, last.reused) == (1, 9)
    assert last.dataset.manifest.parents == ("words/v001", "words/v002")


def test_of_versions_that_have_nothing_more_to_give_only_the_keys_are_read(
    scripted_recipe: MakeRecipe, word_prompts: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for count in (4, 6, 8):
        write_words(word_prompts, WORDS[:count])
        labelled(scripted_recipe())
    opened: Counter[str] = Counter()
    real = Dataset.open

    def counted(self: Dataset, entry: Any) -> Any:
        opened[self.manifest.label] += 1
        return real(self, entry)

    monkeypatch.setattr(Dataset, "open", counted)
    write_words(word_prompts, WORDS[:9])
    labelled(scripted_recipe())
    files = {
        number: len(open_dataset(dataset_folder(scripted_recipe().dataset), number).manifest.files)
        for number in (1, 2, 3)
    }
    assert opened == {"words/v001": files[1], "words/v002": files[2], "words/v003": 2 * files[3]}


def test_with_nothing_new_it_says_so_and_makes_sends_and_spends_nothing(
    api_recipe: MakeRecipe, recipe_file: RecipeFile, tmp_path: Path
) -> None:
    price = {"input_usd_per_million": 1.0, "output_usd_per_million": 1.0}
    with running_stand_in() as server:
        recipe = api_recipe(server.base_url, [f"Name {n}." for n in range(1204)], price=price, budget_usd=1.0)
        first = labelled(recipe)
        before, stats = tree(tmp_path / "labels"), server.stats.requests
        spent = first.dataset.manifest.totals.spent_usd
        again = labelled(recipe)
        assert not again.fresh
        assert (again.sent, again.reused) == (0, 1204)
        assert str(again) == "nothing to do: api/v001 already has answers to all 1,204 prompts"
        told = completed(command(recipe_file(recipe)), tmp_path)
        said = subprocess.run(
            [*command(recipe_file(recipe))[:-1]], cwd=tmp_path, capture_output=True, text=True, check=True, timeout=120
        )
    words = "nothing to do: api/v001 already has answers to all 1,204 prompts"
    assert (told["fresh"], told["sent"], told["message"]) == (False, 0, words)
    assert words in said.stdout
    assert server.stats.requests == stats == 1204
    assert tree(tmp_path / "labels") == before
    assert again.dataset.manifest.totals.spent_usd == spent


def test_a_run_that_ends_while_the_source_is_read_is_not_undone(
    scripted_recipe: MakeRecipe, word_prompts: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The source was read before the other run read more of it: it is read again."""
    write_words(word_prompts, WORDS[:4])
    real = engine.make_plan

    def slow(*arguments: Any) -> LabelPlan:
        plan = real(*arguments)
        monkeypatch.setattr(engine, "make_plan", real)
        write_words(word_prompts, WORDS[:6])
        assert labelled(scripted_recipe()).sent == 6
        return plan

    monkeypatch.setattr(engine, "make_plan", slow)
    with open_job(scripted_recipe()) as job:
        assert job.shards == 0
        assert str(job.commit()) == "nothing to do: words/v001 already has answers to all 6 prompts"


@pytest.mark.slow
def test_ten_runs_over_a_growing_source_with_a_kill_in_each(
    api_recipe: MakeRecipe, recipe_file: RecipeFile, tmp_path: Path
) -> None:
    random = Random(8)
    prompts: list[str] = []
    kept_at: list[tuple[set[str], dict[str, int]]] = []  # at each kill: what was durable, and what was billed by then
    manifests: list[Manifest] = []
    with running_stand_in(latency=0.03) as server:
        stats = server.stats
        for number in range(RUNS):
            new = [f"Name number {number}-{place}." for place in range(NEW)]
            prompts += new
            recipe = api_recipe(server.base_url, prompts, concurrency=CONCURRENCY, shard_size=20)
            run = command(recipe_file(recipe))
            kill_after(run, tmp_path, stats, random.randint(1, NEW - CONCURRENCY), random.uniform(0, 0.03))
            assert len(versions(dataset_folder(recipe.dataset))) == number  # it was killed before its end
            kept_at.append((durable_ids(recipe, tmp_path / "copy"), dict(stats.billed)))
            result = completed(run, tmp_path)
            assert result["fresh"]
            assert result["sent"] <= NEW
            dataset = open_dataset(dataset_folder(recipe.dataset))
            assert set(rows_by_prompt(dataset)) == set(prompts)
            assert sum(dataset.manifest.rows.values()) == len(prompts)
            assert dataset.problems() == []
            manifests.append(dataset.manifest)

    assert [manifest.label for manifest in manifests] == [f"api/v{number:03d}" for number in range(1, RUNS + 1)]
    assert [manifest.parents for manifest in manifests] == [(), *((one.label,) for one in manifests[:-1])]
    rows = rows_by_prompt(dataset)
    for kept, billed in kept_at:
        assert kept
        for prompt in prompts:
            if rows[prompt]["id"] in kept:
                assert stats.billed[prompt] == billed[prompt]
    assert max(stats.billed.values()) <= 2  # in flight at the one kill of its run
    assert stats.billed_answers - len(prompts) <= RUNS * CONCURRENCY


def kill_after(run: list[str], folder: Path, stats: Stats, answers: int, seconds: float) -> None:
    """Start a run and kill it so many answers, and some moments, later."""
    target = stats.billed_answers + answers
    with subprocess.Popen(run, cwd=folder, stderr=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as process:
        until(lambda: stats.billed_answers >= target, process)
        time.sleep(seconds)
        process.kill()
    while stats.at_once:  # the server ends what is left, and may still charge for it
        time.sleep(0.005)


# ------------------------------------------------------------------------------------------------------------- students


@pytest.mark.slow
def test_a_run_keeps_to_its_version_while_others_add_more_and_the_next_one_learns_from_the_newest(
    tiny_recipe: MakeRecipe, word_prompts: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    evaluated = tiny_recipe().evaluate.model_copy(update={"baselines": ()})
    recipe = tiny_recipe().model_copy(update={"evaluate": evaluated})
    write_words(word_prompts, WORDS[:8])
    real = stages.distill_stage

    def while_another_labels(*arguments: Any) -> StudentResult:
        write_words(word_prompts, WORDS)
        assert labelled(recipe).dataset.manifest.label == "words/v002"
        return real(*arguments)

    with monkeypatch.context() as patch:
        patch.setattr(stages, "distill_stage", while_another_labels)
        first = stages.run_stages(recipe)
    assert [student.card.dataset for student in first.students] == ["words/v001"]
    assert first.evaluation.report.labels.dataset == "words/v001"

    newest = stages.recipe_dataset(recipe)
    with pytest.raises(StudentMissing, match=r"words/v002\. Run .*; to use the student of words/v001, set dataset"):
        stages.evaluate_stage(recipe, newest)
    second = stages.distill_stage(recipe, stages.student_of(recipe), newest)
    assert (second.trained, second.card.dataset) == (True, "words/v002")
    print_student(second)
    assert "of words/v002" in capsys.readouterr().out

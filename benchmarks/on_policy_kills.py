"""Twenty kill -9 in a run of four rounds: rollouts lost, doubled or scored again, and the student at the end.

One run is not stopped; another is killed at seeded instants, started again each time, and then left to end. Both have the
same dataset. Every request that the teacher gets is noted in a file before it is answered. After a kill the durable
answers are read from the disk; none of them may be asked again.
"""

from __future__ import annotations

import shutil
import time
from collections import Counter
from pathlib import Path
from random import Random

import torch
from safetensors.torch import load_file

from benchmarks.glosses_data import prepare
from benchmarks.label_kills import durable_answers
from benchmarks.on_policy_ways import MAX_TOKENS, first_recipe
from benchmarks.shared import PYTHON, STILLHOUSE, Running, measured_on, run, scratch, table, versions_of
from stillhouse.dataset.store import open_dataset
from stillhouse.recipe.recipe import Recipe

SEED = 20


def measure(small: bool) -> str:
    """Return the section as Markdown."""
    kills, rounds, prompts = (3, 2, 8) if small else (20, 4, 48)
    with scratch() as folder:
        recipe = _recipe(folder, rounds, prompts)
        file = folder / "recipe.yaml"
        file.write_text(recipe.as_yaml(), encoding="utf-8")
        prepare()
        for stage in ("finetune", "label"):
            run([*STILLHOUSE, stage, file, "--no-flow"], folder / "log.txt")
        asked = folder / "asked.txt"
        command = [PYTHON, "-m", "benchmarks.on_policy_asked", asked, "distill", file, "--no-flow"]
        took = run(command, folder / "log.txt").seconds
        unbroken = _result(recipe, rounds)
        requests = len(asked.read_text(encoding="utf-8").split())
        asked.unlink()
        shutil.rmtree(recipe.students)
        shutil.rmtree(_rollouts(recipe))
        random, again, durable = Random(SEED), 0, set[str]()
        for _ in range(kills):
            process = Running(command, folder / "log.txt")
            until = time.monotonic() + random.uniform(0.2, 2.0) * took / rounds
            while time.monotonic() < until and not process.has_ended:
                time.sleep(0.01)
            process.kill()
            again += _asked_again(asked, durable)
            durable = durable_answers(_rollouts(recipe))
        run(command, folder / "log.txt")
        again += _asked_again(asked, durable)
        broken = _result(recipe, rounds)
        counts = Counter(asked.read_text(encoding="utf-8").split())
    twice = sum(counts.values()) - len(counts)
    same = sum(torch.equal(broken[1][name], weight) for name, weight in unbroken[1].items())
    rows = [
        ["rollouts lost", f"{len(unbroken[0] - broken[0])}", "0"],
        ["rollouts doubled", f"{sum(broken[0].values()) - len(broken[0])}", "0"],
        ["rollouts that the run without kills does not have", f"{len(broken[0] - unbroken[0])}", "0"],
        ["scores on the disk at a kill and asked again", f"{again}", "0"],
        ["scores in flight at a kill and asked again", f"{twice}", f"at most {kills * prompts}"],
        ["weight tensors equal to those without kills", f"{same} of {len(unbroken[1])}", f"{len(unbroken[1])}"],
    ]
    return "\n\n".join(
        [
            f"A run of {rounds} rounds of {prompts} rollouts ({requests} requests, {took:.0f} s), killed with `kill -9` "
            f"{kills} times at instants from seed {SEED} while it writes, scores and learns, and started again each time.",
            table(["", "measured", "wanted"], rows),
            measured_on(versions_of("torch", "transformers")),
        ]
    )


def _recipe(folder: Path, rounds: int, prompts: int) -> Recipe:
    raw = first_recipe(folder, limit=160).model_dump(mode="json", by_alias=True)
    raw["student"]["train"] |= {"save_strategy": "steps", "save_steps": 2, "max_steps": 4}
    raw["on_policy"] = {
        "rounds": rounds,
        "prompts": prompts,
        "batch_size": 16,
        "sampling": {"temperature": 1.0, "max_tokens": MAX_TOKENS},
        "train": {"learning_rate": 1e-4},
    }
    raw["label"]["shard_size"] = 16
    raw["teacher"]["options"] = {"batch_size": 16}
    return Recipe.model_validate(raw)


def _rollouts(recipe: Recipe) -> Path:
    return Path(recipe.dataset.root) / f"{recipe.dataset.name}-rollouts"


def _result(recipe: Recipe, rounds: int) -> tuple[Counter[str], dict[str, torch.Tensor]]:
    """Return the ids of all rollouts, each with its round, and the weights of the student."""
    ids: Counter[str] = Counter()
    for number in range(1, rounds + 1):
        dataset = open_dataset(_rollouts(recipe), number)
        ids.update(f"{number} {id_}" for id_ in dataset.to_table("train")["id"].to_pylist())
    return ids, load_file(Path(recipe.students) / recipe.name / "on-policy" / "model.safetensors")


def _asked_again(asked: Path, durable: set[str]) -> int:
    """Return how many of the answers that were durable have been asked since; then forget what was asked before."""
    if not asked.is_file():
        return 0
    lines = asked.read_text(encoding="utf-8").split()
    marker = asked.with_suffix(".seen")
    seen = int(marker.read_text()) if marker.is_file() else 0
    marker.write_text(str(len(lines)))
    return sum(key in durable for key in lines[seen:])

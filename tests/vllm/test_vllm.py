"""The vLLM teacher on real servers: labels that are right, faults that are survived, wrong servers that are refused."""

from __future__ import annotations

import asyncio
import os
import shutil
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from stillhouse.dataset.columns import completion_at
from stillhouse.dataset.encodings.top_k import WIDTH
from stillhouse.dataset.store import Dataset, dataset_folder, open_dataset
from stillhouse.errors import TeacherRefused, TeacherUnavailable
from stillhouse.labelling.engine import label
from stillhouse.models.load import load_language_model
from stillhouse.recipe.load import load_recipe
from stillhouse.recipe.recipe import Recipe
from stillhouse.records import Completion
from stillhouse.stages.stages import check_teacher
from stillhouse.teachers.serving.vllm_server import VllmServer
from tests.paths import ROOT
from tests.process_tree import members, processes
from tests.vllm.conftest import make_server

MakeVllmRecipe = Callable[..., Recipe]


def rows_of(dataset: Dataset) -> list[Completion]:
    return [
        completion_at(batch, index)
        for split in ("train", "validation")
        for batch in dataset.batches(split)  # type: ignore[arg-type]
        for index in range(batch.num_rows)
    ]


def assert_labels_are_the_models_own(rows: list[Completion], model: Path) -> None:
    """Each position against the full logits of the same model in transformers, float32."""
    lm = load_language_model(model, device="cpu")
    for row in rows:
        trace = row.trace
        assert trace is not None and trace.soft is not None
        ids = [*trace.prompt_token_ids.tolist(), *trace.completion_token_ids.tolist()]
        with torch.inference_mode():
            logits = lm.model(input_ids=torch.tensor([ids])).logits[0]
        full = logits[len(trace.prompt_token_ids) - 1 : -1].double().log_softmax(-1).numpy()
        time_, k = trace.soft.token_ids.shape
        listed = np.take_along_axis(full, trace.soft.token_ids.astype(np.int64), axis=1)
        off = np.abs(listed - trace.soft.logprobs)
        # half a step of the encoding, and a little for float16 and arithmetic; the finest steps end at -WIDTH
        assert off.max() < 1 / 16 + 0.01
        assert off[listed > 0.01 - WIDTH].max(initial=0) < 1 / 256 + 0.002
        assert (np.sort(-full, axis=1)[:, :k] + listed).max() < 1e-3  # they are the k most likely
        tail = 1 - np.exp(listed).sum(axis=1)
        assert (np.abs(tail - np.exp(trace.soft.tail_logprob)) < 1e-4 + tail * (1 / 16 + 0.01)).all()
        chosen = full[np.arange(time_), trace.completion_token_ids]
        assert np.abs(chosen - trace.completion_logprobs).max() < 1e-3


def test_generated_labels_are_the_models_own(
    server: VllmServer, vllm_recipe: MakeVllmRecipe, demo_teacher: Path
) -> None:
    result = asyncio.run(label(vllm_recipe({"base_urls": [server.base_url]})))
    rows = rows_of(result.dataset)
    assert len(rows) == 12
    assert len({row.text for row in rows}) == 12
    assert_labels_are_the_models_own(rows, demo_teacher)
    assert result.dataset.manifest.teacher.fingerprint


def test_scored_labels_are_the_models_own(server: VllmServer, vllm_recipe: MakeVllmRecipe, demo_teacher: Path) -> None:
    recipe = vllm_recipe({"base_urls": [server.base_url]}, label={"mode": "score", "soft": {"k": 20}})
    rows = rows_of(asyncio.run(label(recipe)).dataset)
    assert all(row.text == row.prompt.reference for row in rows)
    assert_labels_are_the_models_own(rows, demo_teacher)


def test_text_alone_needs_no_log_probabilities(server: VllmServer, vllm_recipe: MakeVllmRecipe) -> None:
    recipe = vllm_recipe({"base_urls": [server.base_url]}, label={"sampling": {"max_tokens": 8}})
    rows = rows_of(asyncio.run(label(recipe)).dataset)
    assert all(row.trace is None and row.completion_tokens for row in rows)


def test_a_prompt_past_the_window_is_rejected_and_the_others_go_on(
    server: VllmServer, vllm_recipe: MakeVllmRecipe, word_prompts: Path
) -> None:
    with word_prompts.open("a") as stream:
        stream.write('{"word": "' + "very " * 1200 + 'long"}\n')
    result = asyncio.run(label(vllm_recipe({"base_urls": [server.base_url]})))
    assert result.dataset.manifest.rejected == {"too-long": 1}
    assert sum(result.dataset.manifest.rows.values()) == 12


def test_the_check_finds_a_good_server_good(server: VllmServer, vllm_recipe: MakeVllmRecipe) -> None:
    findings = asyncio.run(check_teacher(vllm_recipe({"base_urls": [server.base_url]})))
    said = {finding.check: finding for finding in findings}
    assert all(finding.passed for finding in findings), findings
    assert {"reachable", "model", "max_logprobs", "tokenizer", "parity", "speed"} == set(said)
    assert "KL" in said["parity"].detail and "tokens per second" in said["speed"].detail


def perturbed(model: Path, folder: Path) -> Path:
    """The same model with other weights: what a wrong folder, or wrong arithmetic, looks like from outside."""
    from safetensors.torch import load_file, save_file

    shutil.copytree(model, folder)
    file = folder / "model.safetensors"
    weights = load_file(file)
    name = next(name for name in weights if name.endswith("layers.15.mlp.down_proj.weight"))
    weights[name] = weights[name] * -1
    save_file(weights, file, metadata={"format": "pt"})
    return folder


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"options": {"served_name": "other"}}, "the server serves teacher, not 'other'"),
        ({"label": {"soft": {"k": 60}}}, "at most 50 log-probabilities per token.*--max-logprobs 60"),
        ({"options": {"check": {"kl": 1e-12}}}, "parity: KL .* largest difference .* over .* tokens"),
    ],
)
def test_a_server_that_does_not_fit_is_refused_before_anything_is_asked(
    server: VllmServer, vllm_recipe: MakeVllmRecipe, change: dict[str, Any], words: str
) -> None:
    options = {"base_urls": [server.base_url], **change.pop("options", {})}
    recipe = vllm_recipe(options, **change)
    with pytest.raises(TeacherRefused, match=words):
        asyncio.run(label(recipe))
    assert not (dataset_folder(recipe.dataset) / "v001" / "manifest.json").exists()


def test_wrong_arithmetic_is_caught_with_its_figures(
    server: VllmServer, vllm_recipe: MakeVllmRecipe, demo_teacher: Path, tmp_path: Path
) -> None:
    other = perturbed(demo_teacher, tmp_path / "other")
    with pytest.raises(TeacherRefused, match=r"parity: KL .*--dtype float32"):
        asyncio.run(label(vllm_recipe({"base_urls": [server.base_url]}, model=other)))


def test_another_tokenizer_is_refused(server: VllmServer, vllm_recipe: MakeVllmRecipe, tiny_model: Path) -> None:
    with pytest.raises(TeacherRefused, match="other token ids on the server"):
        asyncio.run(label(vllm_recipe({"base_urls": [server.base_url], "check": {"parity": False}}, model=tiny_model)))


def test_nobody_there_is_told(vllm_recipe: MakeVllmRecipe) -> None:
    with pytest.raises(TeacherUnavailable, match="reachable"):
        asyncio.run(label(vllm_recipe({"base_urls": ["http://127.0.0.1:9/v1"]})))


# ------------------------------------------------------------------------------------------- servers that come to harm


def test_a_taken_port_and_a_missing_model_are_told(demo_teacher: Path, tmp_path: Path, server: VllmServer) -> None:
    port = int(server.base_url.rpartition(":")[2].removesuffix("/v1"))
    with pytest.raises(TeacherUnavailable, match="another program listens on this port"):
        asyncio.run(make_server(demo_teacher, port=port).start())
    (tmp_path / "empty").mkdir()
    broken = make_server(tmp_path / "empty")
    with pytest.raises(TeacherUnavailable, match="exited with status 1. The end of its log"):
        asyncio.run(broken.start())
    assert not broken.running


def engine_pids(group: int) -> list[int]:
    """vLLM's engine processes in a process group."""
    return [process.pid for process in members(group) if "EngineCore" in process.command]


def test_an_engine_that_dies_in_mid_run_is_started_again_and_nothing_is_lost(
    vllm_recipe: MakeVllmRecipe, recipe_file: Callable[[Recipe], Path], tmp_path: Path
) -> None:
    recipe = vllm_recipe(
        {"serve": {"dtype": "float32", "max_model_len": 1024, "enforce_eager": True, "cpu_kvcache_gib": 1}},
        label={
            "sampling": {"temperature": 0.8, "max_tokens": 120},
            "soft": {"k": 5},
            "shard_size": 4,
            "concurrency": 4,  # of 12: when the first is answered, others are under way
        },
    )
    command = [sys.executable, "-m", "stillhouse", "label", str(recipe_file(recipe)), "--no-flow"]
    told: list[str] = []
    engines: list[tuple[int, int]] = []  # each with the number of lines that were told before it was seen
    with subprocess.Popen(command, cwd=ROOT, stderr=subprocess.PIPE, text=True) as process:
        assert process.stderr is not None
        too_long = threading.Timer(1200, process.kill)
        too_long.start()
        for line in process.stderr:
            told.append(line)
            if not line.startswith("Labelling: ") or line.startswith("Labelling: 0 "):
                continue
            children = [child.pid for child in processes() if child.parent == process.pid]
            for engine in (pid for child in children for pid in engine_pids(child)):
                if engine not in dict(engines):
                    engines.append((engine, len(told)))
            if len(engines) == 1 and engines[0][1] == len(told):
                os.kill(engines[0][0], signal.SIGKILL)
        too_long.cancel()
    assert process.returncode == 0, told
    (_, first), (again, _) = engines
    assert any("Starting vLLM" in line for line in told[first:]), told
    dataset = open_dataset(dataset_folder(recipe.dataset))
    assert (sum(dataset.manifest.rows.values()), dict(dataset.manifest.rejected)) == (12, {})
    assert again not in [one.pid for one in processes()]  # it was stopped in the end


def test_a_labelling_process_that_is_killed_leaves_no_server_and_loses_nothing(
    server: VllmServer, vllm_recipe: MakeVllmRecipe, recipe_file: Callable[[Recipe], Path]
) -> None:
    recipe = vllm_recipe(
        {"base_urls": [server.base_url], "check": {"parity": False}},
        label={
            "sampling": {"temperature": 0.8, "max_tokens": 64},
            "soft": {"k": 5},
            "concurrency": 3,
            "max_rejected": 1,
        },
    )
    file = recipe_file(recipe)
    command = [sys.executable, "-m", "stillhouse", "label", str(file), "--no-flow"]
    with subprocess.Popen(command, cwd=ROOT, stderr=subprocess.PIPE, text=True) as process:
        assert process.stderr is not None
        for line in process.stderr:
            if line.startswith("Labelling: ") and not line.startswith("Labelling: 0 "):
                break
        else:
            pytest.fail("it ended before anything was answered")
        process.kill()
    assert server.running
    result = asyncio.run(label(load_recipe(str(file))))
    assert 0 < result.reused < 12
    assert sum(result.dataset.manifest.rows.values()) + sum(result.dataset.manifest.rejected.values()) == 12


def test_a_replica_that_leaves_and_returns_is_not_noticed(
    server: VllmServer, vllm_recipe: MakeVllmRecipe, demo_teacher: Path, word_prompts: Path
) -> None:
    with word_prompts.open("a") as stream:
        stream.writelines(f'{{"word": "thing {number}"}}\n' for number in range(48))
    other = make_server(demo_teacher)
    asyncio.run(other.start())
    recipe = vllm_recipe(
        {"base_urls": [server.base_url, other.base_url], "check": {"parity": False}},
        label={
            "sampling": {"temperature": 0.8, "max_tokens": 24},
            "soft": {"k": 5},
            "concurrency": 8,
            "max_rejected": 1,
        },
    )

    async def while_it_leaves_and_returns() -> Any:
        done: list[int] = []
        labelling = asyncio.create_task(
            label(recipe, lambda what, count, _: done.append(count * (what == "Labelling")))
        )
        while not any(done[-1:]):  # the servers are checked, and the first answers are here
            await asyncio.sleep(0.1)
        await asyncio.to_thread(other.stop)
        await other.start()
        return await labelling

    try:
        result = asyncio.run(while_it_leaves_and_returns())
    finally:
        other.stop()
    rejected = result.dataset.manifest.rejected
    assert sum(result.dataset.manifest.rows.values()) + sum(rejected.values()) == 60
    assert not rejected.keys() & {"cut-off", "unreachable", "engine-died", "killed-engine", "server-error"}


def test_a_server_ends_with_the_process_that_started_it(demo_teacher: Path, tmp_path: Path) -> None:
    script = (
        "import asyncio, sys\n"
        "from pathlib import Path\n"
        "from tests.vllm.conftest import make_server\n"
        "server = make_server(Path(sys.argv[1]))\n"
        "asyncio.run(server.start())\n"
        "print(server._process.pid, flush=True)\n"
        "input()\n"
    )
    command = [sys.executable, "-c", script, str(demo_teacher)]
    with subprocess.Popen(command, cwd=ROOT, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        pid = int(process.stdout.readline())
        assert engine_pids(pid)
        process.kill()
    until = time.monotonic() + 60
    while members(pid) and time.monotonic() < until:
        time.sleep(0.5)
    assert not members(pid)

"""`stillhouse teacher check` and `stillhouse teacher serve`, as a person runs them."""

from __future__ import annotations

import json
import os
import re
import signal
import subprocess
import sys
import urllib.request
from collections.abc import Callable
from pathlib import Path
from typing import Any
from urllib.error import URLError

import pytest
import yaml

from stillhouse.recipe.recipe import Recipe
from stillhouse.teachers.serving.vllm_server import PYTHON_VARIABLE, VllmServer
from tests.conftest import MakeRecipe
from tests.paths import ROOT

MakeVllmRecipe = Callable[..., Recipe]
RecipeFile = Callable[[Recipe], Path]
SERVE: dict[str, Any] = {"dtype": "float32", "max_model_len": 1024, "enforce_eager": True, "cpu_kvcache_gib": 1}


def stillhouse(*arguments: str | Path) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "stillhouse", *map(str, arguments)]
    return subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=400, check=False)


def test_check_tells_what_it_found(server: VllmServer, vllm_recipe: MakeVllmRecipe, recipe_file: RecipeFile) -> None:
    done = stillhouse("teacher", "check", recipe_file(vllm_recipe({"base_urls": [server.base_url]})))
    assert done.returncode == 0, done.stderr
    for what in ("reachable", "max_logprobs", "tokenizer", "parity", "speed", "tokens per second"):
        assert what in done.stdout


def test_check_of_a_wrong_server_ends_with_status_1_and_names_the_mend(
    server: VllmServer, vllm_recipe: MakeVllmRecipe, recipe_file: RecipeFile
) -> None:
    recipe = vllm_recipe({"base_urls": [server.base_url]}, label={"soft": {"k": 60}})
    done = stillhouse("teacher", "check", recipe_file(recipe), "--json")
    assert done.returncode == 1
    (bad,) = [one for one in json.loads(done.stdout)["findings"] if not one["passed"]]
    assert (bad["check"], "--max-logprobs 60" in bad["detail"]) == ("max_logprobs", True)


def test_serve_runs_until_it_is_interrupted_and_leaves_nothing(
    vllm_recipe: MakeVllmRecipe, recipe_file: RecipeFile
) -> None:
    file = recipe_file(vllm_recipe({"serve": SERVE}))
    command = [sys.executable, "-m", "stillhouse", "teacher", "serve", str(file)]
    environment = {**os.environ, "PYTHONUNBUFFERED": "1"}
    with subprocess.Popen(
        command, cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, env=environment
    ) as process:
        assert process.stdout is not None
        line = process.stdout.readline()
        assert "http://127.0.0.1:" in line, line + (process.communicate()[1] if not line else "")
        url = next(word for word in line.split() if word.startswith("http")).rstrip(".,:")
        with urllib.request.urlopen(f"{url}/models", timeout=10) as answer:
            assert json.load(answer)["data"][0]["id"] == "teacher"
        process.send_signal(signal.SIGINT)
        _, told = process.communicate(timeout=60)
    assert process.returncode in (0, 130)
    assert "Starting vLLM" in told
    with pytest.raises(URLError):
        urllib.request.urlopen(f"{url}/models", timeout=2)


@pytest.mark.parametrize(
    ("serve", "words"),
    [
        ({"port": "taken"}, "another program listens on this port"),
        ({"cpu_kvcache_gib": 100_000}, "memory"),
        ({"max_model_len": 100_000}, "max_model_len"),
    ],
    ids=["port taken", "out of memory", "window too long"],
)
def test_a_server_that_does_not_start_says_why(
    server: VllmServer,
    vllm_recipe: MakeVllmRecipe,
    recipe_file: RecipeFile,
    serve: dict[str, Any],
    words: str,
) -> None:
    if "port" in serve:
        serve = {"port": int(server.base_url.rpartition(":")[2].removesuffix("/v1"))}
    done = stillhouse("teacher", "serve", recipe_file(vllm_recipe({"serve": SERVE | serve})))
    assert done.returncode == 1
    assert words in done.stderr
    assert "Traceback (most recent call last)" not in done.stderr.partition("The end of its log")[0]


def test_serve_without_a_model_says_why(
    vllm_recipe: MakeVllmRecipe, recipe_file: RecipeFile, tmp_path: Path, scripted_recipe: MakeRecipe
) -> None:
    done = stillhouse("teacher", "serve", recipe_file(vllm_recipe({"serve": SERVE}, model=tmp_path / "nothing")))
    assert done.returncode == 1
    assert str(tmp_path / "nothing") in done.stderr
    assert "no folder has this path" in done.stderr
    done = stillhouse("teacher", "serve", recipe_file(scripted_recipe()))
    assert done.returncode == 2
    assert "vllm" in done.stderr


@pytest.mark.parametrize("service", ["vllm", "vllm-cpu"])
def test_the_compose_file_s_arguments_are_understood(service: str) -> None:
    compose = yaml.safe_load((ROOT / "docker/compose.yaml").read_text())
    command = [re.sub(r"\$\{\w+:-([^}]*)\}", r"\1", part) for part in compose["services"][service]["command"]]
    script = (
        "import sys\n"
        "from vllm.entrypoints.launchers.cli_args import make_arg_parser\n"
        "from vllm.utils.argparse_utils import FlexibleArgumentParser\n"
        "given = make_arg_parser(FlexibleArgumentParser()).parse_args(sys.argv[1:])\n"
        "print(given.max_logprobs, given.served_model_name)\n"
    )
    python = os.environ[PYTHON_VARIABLE]
    done = subprocess.run([python, "-c", script, *command], capture_output=True, text=True, check=False)
    assert done.stdout.split()[-2:] == ["50", "['teacher']"], done.stderr[-2000:]

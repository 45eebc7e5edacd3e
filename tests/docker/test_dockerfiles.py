"""What can be said of the Dockerfiles without building them: read by a parser, and held against the files they copy."""

import fnmatch
import json
import re
from pathlib import Path

import pytest
from dockerfile_parse import DockerfileParser

from tests.paths import ROOT

FILES = [ROOT / "docker/Dockerfile", ROOT / "docker/vllm-cpu.Dockerfile"]


def instructions(file: Path) -> list[tuple[str, str]]:
    """Name and value of each, in order."""
    with file.open("rb") as stream:
        parsed = json.loads(DockerfileParser(fileobj=stream).json)
    return [(name, value) for one in parsed for name, value in one.items() if name != "COMMENT"]


def stages(file: Path) -> dict[str, list[tuple[str, str]]]:
    """By name; the last is what is built when none is asked for."""
    found: dict[str, list[tuple[str, str]]] = {}
    for name, value in instructions(file):
        if name == "FROM":
            found[value.split(" AS ")[-1]] = []
        list(found.values())[-1].append((name, value))
    return found


def test_the_cpu_target_is_the_default_and_the_gpu_target_differs_in_torch_and_its_compiler() -> None:
    targets = stages(FILES[0])
    assert list(targets)[-1] == "cpu" and "gpu" in targets
    cpu, gpu = targets["cpu"], targets["gpu"]
    assert {value for name, value in cpu if name == "COPY"} == {value for name, value in gpu if name == "COPY"}
    assert ("ARG", "TORCH_INDEX=") in cpu
    assert any("--extra-index-url" in value for _, value in cpu)
    assert not any("--extra-index-url" in value for _, value in gpu)


@pytest.mark.parametrize("file", FILES, ids=lambda file: file.name)
def test_nobody_is_root_when_it_runs(file: Path) -> None:
    made = " ".join(value for name, value in instructions(file) if name == "RUN")
    targets = stages(file)
    for target in ("gpu", "cpu") if "cpu" in targets else list(targets):
        (user,) = [value for name, value in targets[target] if name == "USER"]
        assert f"useradd --uid 1000 --create-home {user}" in made


@pytest.mark.parametrize("file", FILES, ids=lambda file: file.name)
def test_what_is_copied_is_there_and_is_sent_to_the_builder(file: Path) -> None:
    allowed = re.findall(r"^!(\S+)$", (ROOT / ".dockerignore").read_text(), re.M)
    for value in [value for name, value in instructions(file) if name == "COPY" and "--from=" not in value]:
        for source in value.split()[:-1]:
            assert (ROOT / source).exists(), source
            assert source in allowed, f"{source} is not in .dockerignore's list"


def test_all_that_the_package_is_built_from_is_copied() -> None:
    copied = {source for name, value in stages(FILES[0])["parts"] if name == "COPY" for source in value.split()[:-1]}
    assert {"pyproject.toml", "README.md", "LICENSE", "pipeline", "flows", "prompts"} <= copied


@pytest.mark.parametrize("file", FILES, ids=lambda file: file.name)
def test_no_image_holds_a_secret(file: Path) -> None:
    for name, value in instructions(file):
        if name in {"ENV", "ARG"}:
            for variable in re.findall(r"([A-Z_]+)=", value):
                assert not any(
                    fnmatch.fnmatch(variable, f"*{word}*") for word in ("KEY", "TOKEN", "PASSWORD", "AUTH")
                ), value
    assert not any(
        line.startswith("!") and ".env" in line for line in (ROOT / ".dockerignore").read_text().splitlines()
    )
    assert ".env" in (ROOT / ".gitignore").read_text().splitlines()

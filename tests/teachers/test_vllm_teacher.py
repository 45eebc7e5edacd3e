"""The `vllm` teacher and its checks against a server that speaks vLLM's API: labels, refusals, and an engine that dies."""

import asyncio
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from stillhouse.errors import TeacherRefused, TeacherUnavailable
from stillhouse.labelling.engine import label
from stillhouse.progress import silent
from stillhouse.recipe.label import LabelSettings
from stillhouse.recipe.teacher import TeacherSettings
from stillhouse.records import Message, Prompt
from stillhouse.teachers.base import Answer, AnswerSettings, AttemptFailed, Finding, Outcome, Refusal, Request
from stillhouse.teachers.vllm import VllmTeacher, open_teacher
from tests.conftest import MakeRecipe
from tests.rows import rows_by_prompt
from tests.vllm_stand_in import Faults, running_vllm

K = 8
LABEL: dict[str, Any] = {"sampling": {"temperature": 0.0, "max_tokens": 4}, "soft": {"k": K}}


def teacher_of(model: Path, *base_urls: str, label: dict[str, Any] | None = None, **options: Any) -> VllmTeacher:
    given = {"base_urls": list(base_urls), "served_name": "teacher", **options}
    settings = TeacherSettings(kind="vllm", model=str(model), options=given)
    return open_teacher(settings, LabelSettings.model_validate(label or LABEL), 0)


def request_of(teacher: VllmTeacher, text: str, forced: str | None = None) -> Request:
    return Request(
        Prompt((Message("user", text),)), 0, AnswerSettings.from_label(teacher.identity, LabelSettings()), forced
    )


def asked(teacher: VllmTeacher, *requests: Request, prepare: bool = False) -> list[Outcome | AttemptFailed]:
    """What came of one attempt at each, one after another."""

    async def ask() -> list[Outcome | AttemptFailed]:
        try:
            if prepare:
                await teacher.prepare(silent)
            found: list[Outcome | AttemptFailed] = []
            for request in requests:
                try:
                    found += await teacher.answer([request])
                except AttemptFailed as trouble:
                    found.append(trouble)
            return found
        finally:
            await teacher.close()

    return asyncio.run(ask())


def checked(teacher: VllmTeacher) -> Sequence[Finding]:
    async def check() -> Sequence[Finding]:
        try:
            return await teacher.check(silent)
        finally:
            await teacher.close()

    return asyncio.run(check())


def test_a_sound_server_is_found_well_in_everything_that_is_looked_at(tiny_model: Path) -> None:
    with running_vllm(tiny_model) as server:
        findings = checked(teacher_of(tiny_model, server.base_url))
    assert [(one.check, one.passed) for one in findings] == [
        ("reachable", True),
        ("model", True),
        ("max_logprobs", True),
        ("tokenizer", True),
        ("parity", True),
        ("speed", True),
    ]
    assert "256 tokens" in findings[1].detail


@pytest.mark.parametrize(
    ("parts", "what", "words"),
    [
        ({"name": "another"}, "model", "the server serves another, not 'teacher'"),
        ({"faults": Faults(max_logprobs=5)}, "max_logprobs", "at most 5 log-probabilities.*--max-logprobs 20"),
        ({"faults": Faults(token_shift=1)}, "tokenizer", "other token ids on the server"),
        ({"faults": Faults(temperature=0.5)}, "parity", "KL .*nats per token.*--dtype float32"),
        ({"faults": Faults(temperature=1.5)}, "parity", "KL .*nats per token.*--dtype float32"),
    ],
)
def test_a_server_that_is_not_the_recipe_s_teacher_is_refused_before_anything_is_asked(
    tiny_model: Path, parts: dict[str, Any], what: str, words: str
) -> None:
    check = {"kl": 1e-4, "largest": 0.05}
    with running_vllm(tiny_model, **parts) as server:
        teacher = teacher_of(tiny_model, server.base_url, check=check)
        with pytest.raises(TeacherRefused, match=f"is not the recipe's teacher: {what}: .*{words}"):
            asked(teacher, prepare=True)
        found = checked(teacher_of(tiny_model, server.base_url, check=check))
    assert [(one.check, one.passed) for one in found][-1] == (what, False)  # what stands on it is left out


def test_each_of_several_servers_is_checked(tiny_model: Path) -> None:
    with (
        running_vllm(tiny_model) as well,
        running_vllm(tiny_model, name="another") as ill,
        pytest.raises(TeacherRefused, match=f"{ill.base_url} is not the recipe's teacher"),
    ):
        asked(teacher_of(tiny_model, well.base_url, ill.base_url), prepare=True)


def test_a_server_that_is_not_there_is_told(tiny_model: Path) -> None:
    with pytest.raises(TeacherUnavailable, match=r"reachable: .*127\.0\.0\.1:9/v1 cannot be reached.*base_urls"):
        asked(teacher_of(tiny_model, "http://127.0.0.1:9/v1"), prepare=True)


def test_a_generated_answer_has_the_server_s_own_labels(tiny_model: Path) -> None:
    with running_vllm(tiny_model) as server:
        teacher = teacher_of(tiny_model, server.base_url)
        (answer,) = asked(teacher, request_of(teacher, "Name a colour."))
    assert isinstance(answer, Answer) and answer.trace is not None and answer.trace.soft is not None
    body = server.bodies[0]
    assert answer.trace.prompt_token_ids.tolist() == body["prompt"]
    assert (answer.prompt_tokens, answer.completion_tokens, answer.finish_reason) == (len(body["prompt"]), 4, "length")
    assert answer.trace.soft.token_ids.shape == (4, K)
    assert answer.trace.completion_token_ids.tolist() == answer.trace.soft.token_ids[:, 0].tolist()  # greedy
    mass = np.exp(answer.trace.soft.logprobs.astype(float)).sum(axis=1) + np.exp(answer.trace.soft.tail_logprob)
    np.testing.assert_allclose(mass, 1.0, atol=1e-3)
    assert {name: body[name] for name in ("temperature", "max_tokens", "logprobs", "top_k", "repetition_penalty")} == {
        "temperature": 0.0,
        "max_tokens": 4,
        "logprobs": K,
        "top_k": -1,
        "repetition_penalty": 1.0,
    }


def test_a_forced_text_is_scored_with_its_end_and_nothing_is_written(tiny_model: Path) -> None:
    with running_vllm(tiny_model) as server:
        teacher = teacher_of(tiny_model, server.base_url, label={**LABEL, "mode": "score"})
        (answer,) = asked(teacher, request_of(teacher, "Name a colour.", forced="Blue."))
    assert isinstance(answer, Answer) and answer.trace is not None
    body = server.bodies[0]
    assert (body["echo"], body["max_tokens"]) == (True, 0)
    assert (answer.text, answer.finish_reason) == ("Blue.", "stop")
    completion = answer.trace.completion_token_ids.tolist()
    assert [*answer.trace.prompt_token_ids.tolist(), *completion] == body["prompt"]
    assert completion[-1] == teacher._tokenizer.eos_token_id


def test_a_prompt_that_the_window_has_no_room_for_is_not_sent(tiny_model: Path) -> None:
    with running_vllm(tiny_model) as server:
        teacher = teacher_of(tiny_model, server.base_url, check={"parity": False})
        asked(teacher, prepare=True)
        bare = len(teacher.body(request_of(teacher, ""))["prompt"])
        before = len(server.bodies)
        fits, passes = "x" * (server.window - 4 - bare), "x" * (server.window - 3 - bare)  # a byte is a token
        outcomes = asked(teacher, request_of(teacher, fits), request_of(teacher, passes))
    assert isinstance(outcomes[0], Answer)
    assert isinstance(outcomes[1], Refusal) and outcomes[1].reason == "too-long"
    assert f"more than the server's context window of {server.window}" in outcomes[1].detail
    assert len(server.bodies) == before + 1


def test_an_engine_that_dies_twice_with_a_request_rejects_it_and_once_is_forgiven(tiny_model: Path) -> None:
    with running_vllm(tiny_model) as server:
        teacher = teacher_of(tiny_model, server.base_url)
        deadly, harmless = request_of(teacher, "Kill."), request_of(teacher, "Name a colour.")
        server.faults.kills = (teacher.body(deadly)["prompt"][-1],)  # the same for all: the template's end
        first = asked(teacher, deadly, harmless)
        assert [type(one) for one in first] == [AttemptFailed, AttemptFailed]
        assert all(
            isinstance(one, AttemptFailed) and one.server_at_fault and one.reason == "engine-died" for one in first
        )
        second = asked(teacher, deadly)
        server.faults.kills = ()
        third = asked(teacher, harmless, deadly)
    assert isinstance(second[0], Refusal) and second[0].reason == "killed-engine"
    assert all(isinstance(one, Answer) for one in third)


def test_a_request_that_kills_the_engine_is_asked_again_alone_and_rejected_and_the_rest_is_saved(
    tiny_model: Path, scripted_recipe: MakeRecipe, word_prompts: Path
) -> None:
    with word_prompts.open("a") as file:
        file.write('{"word": "~", "reference": "It kills."}\n')
    with running_vllm(tiny_model) as server:
        options = {"served_name": "teacher", "base_urls": [server.base_url], "check": {"parity": False}}
        teacher = teacher_of(tiny_model, server.base_url)
        server.faults.kills = tuple(teacher._tokenizer("~", add_special_tokens=False)["input_ids"])
        settings = {"kind": "vllm", "model": str(tiny_model), "options": options}
        result = asyncio.run(label(scripted_recipe(teacher=settings, label={**LABEL, "concurrency": 8})))
    reasons = {prompt: row["reason"] for prompt, row in rows_by_prompt(result.dataset).items()}
    assert reasons.pop("Explain ~.") == "killed-engine"
    assert (len(reasons), set(reasons.values())) == (12, {None})
    assert len(server.at_once_when_killed) == 2
    assert server.at_once_when_killed[-1] == 1


def test_a_whole_run_keeps_the_labels_of_every_prompt(tiny_model: Path, scripted_recipe: MakeRecipe) -> None:
    with running_vllm(tiny_model) as server, running_vllm(tiny_model) as other:
        options = {"served_name": "teacher", "base_urls": [server.base_url, other.base_url]}
        teacher = {"kind": "vllm", "model": str(tiny_model), "options": options}
        result = asyncio.run(label(scripted_recipe(teacher=teacher, label={**LABEL, "concurrency": 4})))
        assert min(len(server.bodies), len(other.bodies)) > 12  # the checks, and some of the prompts each
    rows = rows_by_prompt(result.dataset)
    assert len(rows) == 12
    assert {row["finish_reason"] for row in rows.values()} == {"length"}
    assert result.dataset.problems() == []

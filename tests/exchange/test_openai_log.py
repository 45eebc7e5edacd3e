"""Logs of the OpenAI API: every answer that was paid for becomes a row, and labelling the same again pays nothing."""

import asyncio
import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq
import pytest

from stillhouse.errors import UsageError
from stillhouse.exchange.imports import Imported, ImportRequest, import_dataset
from stillhouse.exchange.openai_log import OPENAI_URL, LogReader
from stillhouse.labelling.engine import label
from stillhouse.labelling.estimate import estimate_labelling
from stillhouse.recipe.recipe import Recipe, recipe_from

BODY: dict[str, Any] = {
    "model": "gpt-4o-mini",
    "messages": [{"role": "system", "content": "Be brief."}, {"role": "user", "content": "What is a kettle?"}],
    "temperature": 0.5,
    "top_p": 0.9,
    "max_tokens": 64,
}
NOWHERE = "http://127.0.0.1:9/v1"


def body(prompt: str, **more: Any) -> dict[str, Any]:
    return {**BODY, "messages": [BODY["messages"][0], {"role": "user", "content": prompt}], **more}


def answer(text: str = "A thing.", **more: Any) -> dict[str, Any]:
    choice = {"index": 0, "message": {"role": "assistant", "content": text}, "finish_reason": "stop"}
    usage = {"prompt_tokens": 20, "completion_tokens": 10, "total_tokens": 30}
    return {"model": "gpt-4o-mini-2024-07-18", "created": 1_760_000_000, "choices": [choice], "usage": usage, **more}


def write(tmp_path: Path, name: str, *rows: Any) -> Path:
    file = tmp_path / name
    file.write_text("".join((row if isinstance(row, str) else json.dumps(row)) + "\n" for row in rows))
    return file


def read(tmp_path: Path, *files: Path, base_url: str = OPENAI_URL, **more: Any) -> Imported:
    reader = LogReader(base_url)
    request = ImportRequest("openai-log", files, tmp_path / "labels", "api", interpret=reader, validation=0.0, **more)
    return import_dataset(request)


def rows_of(done: Imported) -> list[dict[str, Any]]:
    return [
        row
        for entry in done.dataset.manifest.files
        for row in pq.read_table(done.dataset.folder / entry.path).to_pylist()
    ]


def batch(prompts: list[str], **more: Any) -> tuple[list[Any], list[Any]]:
    """The two files of the Batch API."""
    asked = [
        {"custom_id": f"r{n}", "method": "POST", "url": "/v1/chat/completions", "body": body(prompt, **more)}
        for n, prompt in enumerate(prompts)
    ]
    given = [
        {
            "id": f"b{n}",
            "custom_id": f"r{n}",
            "response": {"status_code": 200, "body": answer(f"About {prompt}")},
            "error": None,
        }
        for n, prompt in enumerate(prompts)
    ]
    return asked, given


def recipe(tmp_path: Path, prompts: list[str], *, base_url: str = OPENAI_URL, **label_: Any) -> Recipe:
    source = write(tmp_path, "prompts.jsonl", *({"prompt": prompt} for prompt in prompts))
    options = label_.pop("options", {})
    return recipe_from(
        {
            "name": "api",
            "prompts": {"source": str(source), "system": "Be brief.", "holdout": 0.3},
            "teacher": {"kind": "openai", "model": "gpt-4o-mini", "options": {"base_url": base_url, **options}},
            "label": {"sampling": {"temperature": 0.5, "top_p": 0.9, "max_tokens": 64}, **label_},
            "dataset": {"root": str(tmp_path / "labels"), "name": "api"},
        },
        "test",
    )


# -------------------------------------------------------------------------------------------------------- paid for once


@pytest.mark.parametrize("base_url", [OPENAI_URL, NOWHERE])
def test_labelling_the_same_again_sends_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, base_url: str) -> None:
    monkeypatch.setenv("OPENAI_API_KEY", "sk-nobody-listens")
    prompts = [f"What is a {thing}?" for thing in ("kettle", "tram", "sofa", "nurse")]
    asked, given = batch(prompts)
    done = read(tmp_path, write(tmp_path, "in.jsonl", *asked), write(tmp_path, "out.jsonl", *given), base_url=base_url)
    assert (done.counts.keyed, dict(done.counts.unkeyed)) == (4, {})
    same = recipe(tmp_path, prompts, base_url=base_url)
    assert (estimate_labelling(same).answered, estimate_labelling(same).to_send) == (4, 0)
    labelled = asyncio.run(label(same))
    assert (labelled.sent, labelled.reused) == (0, 4)
    assert labelled.dataset.manifest.parents == ("api/v001",)
    assert sorted(labelled.dataset.manifest.rows) == ["train", "validation"]
    more = recipe(tmp_path, [*prompts, "What is a violin?"], base_url=base_url)
    assert estimate_labelling(more).to_send == 1


@pytest.mark.parametrize(
    "shaping",
    [
        {"response_format": {"type": "json_object"}},
        {"top_logprobs": 3},
        {
            "options": {
                "extra_body": {"seed": 7, "stop": ["\n"], "tools": [{"type": "function", "function": {"name": "f"}}]}
            }
        },
        {"options": {"max_tokens_field": "max_completion_tokens"}},
        {"options": {"extra_body": {"presence_penalty": 0.5}}},
        {"sampling": {"temperature": 1.0, "top_p": 1.0, "max_tokens": 9}},
    ],
    ids=str,
)
def test_what_the_teacher_would_send_has_the_key_that_the_engine_gives(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, shaping: dict[str, Any]
) -> None:
    from stillhouse.prompts.load import read_prompts
    from stillhouse.teachers.base import AnswerSettings, Request, open_teacher
    from stillhouse.teachers.openai import OpenAiTeacher

    monkeypatch.setenv("OPENAI_API_KEY", "sk-nobody-listens")
    one = recipe(tmp_path, ["What is a kettle?"], **shaping)
    teacher = open_teacher(one.teacher, one.label, 0)
    assert isinstance(teacher, OpenAiTeacher)
    request = Request(next(read_prompts(one.prompts)), 0, AnswerSettings.from_label(teacher.identity, one.label))
    sent = teacher._body(request)
    done = read(tmp_path, write(tmp_path, "log.jsonl", {"request": sent, "response": answer()}))
    assert [row["id"] for row in rows_of(done)] == [request.key]


def test_what_shapes_nothing_is_no_part_of_a_key(tmp_path: Path) -> None:
    idle = {
        "user": "u",
        "n": 1,
        "stream": False,
        "presence_penalty": 0,
        "stop": None,
        "tools": [],
        "metadata": {"a": 1},
    }
    rows = [{"request": body("q"), "response": answer()}, {"request": body("q", **idle), "response": answer()}]
    done = read(tmp_path, write(tmp_path, "log.jsonl", *rows))
    assert [row["sample"] for row in rows_of(done)] == [0, 1]
    assert len(done.counts.teachers) == 1
    assert done.dataset.manifest.sampling is not None
    assert done.dataset.manifest.sampling.max_tokens == 64


@pytest.mark.parametrize(
    ("change", "base_url", "why"),
    [
        ({"max_tokens": None}, OPENAI_URL, "max_tokens is not in the request"),
        ({"max_completion_tokens": 5}, OPENAI_URL, "the request has two token limits"),
        (
            {"temperature": None},
            NOWHERE,
            f"the temperature is not in the request, and the default of {NOWHERE} is unknown",
        ),
        ({"model": None}, OPENAI_URL, "the model is not in the request"),
        ({"temperature": -1}, OPENAI_URL, "a recipe cannot send this request: sampling.temperature"),
        ({"messages": [{"role": "developer", "content": "x"}]}, OPENAI_URL, "a message's role is 'developer'"),
        ({"messages": [{"role": "user", "content": "x", "name": "Ann"}]}, OPENAI_URL, "more than a role and text"),
        ({"messages": [{"role": "user", "content": [{"type": "text", "text": "x"}]}]}, OPENAI_URL, "more than a role"),
        ({"best_of": 3}, OPENAI_URL, "best_of is set"),
    ],
)
def test_a_key_that_cannot_be_known_is_not_claimed_and_the_row_is_kept(
    tmp_path: Path, change: dict[str, Any], base_url: str, why: str
) -> None:
    done = read(
        tmp_path, write(tmp_path, "log.jsonl", {"request": body("q") | change, "response": answer()}), base_url=base_url
    )
    assert done.counts.keyed == 0
    assert why in next(iter(done.counts.unkeyed))
    assert len(rows_of(done)) == 1


def test_the_apis_own_temperature_is_the_key_of_a_request_without_one(tmp_path: Path) -> None:
    given = [{"request": body("q") | {"temperature": t}, "response": answer()} for t in (None, 1, 1.0)]
    done = read(tmp_path, write(tmp_path, "log.jsonl", *given))
    assert (done.counts.keyed, [row["sample"] for row in rows_of(done)]) == (3, [0, 1, 2])


# -------------------------------------------------------------------------------------------------------------- any shape


@pytest.mark.parametrize(
    "line",
    [
        {"request": body("q"), "response": answer()},
        {
            "request": {"body": body("q"), "url": "/v1/chat/completions"},
            "response": {"status_code": 200, "body": answer()},
        },
        {"request": {"body": json.dumps(body("q"))}, "response": {"status": 200, "body": json.dumps(answer())}},
        {"body": body("q"), "response": answer(), "custom_id": "x", "url": "/v1/chat/completions"},
        {**body("q"), "response": answer()},
        {**body("q"), "choices": answer()["choices"], "usage": answer()["usage"]},
        {**body("q"), "response": "A thing."},
    ],
    ids=["both", "wrapped", "as text", "batch body", "flat", "flat choices", "text alone"],
)
def test_lines_that_hold_both(tmp_path: Path, line: dict[str, Any]) -> None:
    done = read(tmp_path, write(tmp_path, "log.jsonl", line))
    (row,) = rows_of(done)
    assert row["prompt"] == body("q")["messages"]
    assert row["completion"] == [{"role": "assistant", "content": "A thing."}]
    assert done.counts.keyed == 1
    if "A thing." not in str(line.get("response")) or isinstance(line["response"], dict):
        assert (row["prompt_tokens"], row["completion_tokens"], row["finish_reason"]) == (20, 10, "stop")
    assert row["teacher"] == "gpt-4o-mini"


def test_usage_cost_and_what_else_is_told_are_kept(tmp_path: Path) -> None:
    told = answer("x", choices=[{"message": {"content": "x", "reasoning_content": "hm"}, "finish_reason": "length"}])
    asked, given = batch(["q"])
    done = read(
        tmp_path,
        write(tmp_path, "log.jsonl", {"request": body("other"), "response": told}),
        write(tmp_path, "batch.jsonl", *asked, *given),
    )
    log, half = rows_of(done)
    assert (log["finish_reason"], log["reasoning"], log["created_at"]) == ("length", "hm", "2025-10-09T08:53:20+00:00")
    assert log["cost_usd"] == pytest.approx((20 * 0.15 + 10 * 0.6) / 1e6)
    assert half["cost_usd"] == pytest.approx(log["cost_usd"] / 2)
    manifest = done.dataset.manifest
    assert (manifest.teacher.kind, manifest.teacher.endpoint) == ("openai", OPENAI_URL)
    assert manifest.teacher.fingerprint == "gpt-4o-mini-2024-07-18"
    assert manifest.totals.cost_usd == pytest.approx(1.5 * log["cost_usd"])


def test_a_log_that_does_not_say_how_an_answer_ended_holds_whole_answers(tmp_path: Path) -> None:
    """As the formats of conversations do; a word that is not known is a reason, and not an end."""
    unsaid = answer(choices=[{"message": {"content": "x"}}])
    null = answer(choices=[{"message": {"content": "x"}, "finish_reason": None}])
    odd = answer(choices=[{"message": {"content": "x"}, "finish_reason": "abort"}])
    lines = [{"request": body(str(n)), "response": told} for n, told in enumerate([unsaid, null, "text alone", odd])]
    found = {
        row["prompt"][-1]["content"]: row["finish_reason"]
        for row in rows_of(read(tmp_path, write(tmp_path, "log.jsonl", *lines)))
    }
    assert found == {"0": "stop", "1": "stop", "2": "stop", "3": "other"}


def test_several_choices_are_several_samples(tmp_path: Path) -> None:
    choices = [{"index": n, "message": {"content": f"answer {n}"}, "finish_reason": "stop"} for n in (1, 0)]
    done = read(
        tmp_path, write(tmp_path, "log.jsonl", {"request": body("q", n=2), "response": answer(choices=choices)})
    )
    rows = rows_of(done)
    assert [(row["sample"], row["completion"][0]["content"]) for row in rows] == [(0, "answer 0"), (1, "answer 1")]
    assert [row["prompt_tokens"] for row in rows] == [20, None]  # what was billed is counted once
    assert done.counts.keyed == 2


def test_an_answer_that_is_logged_twice_is_one(tmp_path: Path) -> None:
    line = {"request": body("q"), "response": answer(id="chatcmpl-1")}
    done = read(tmp_path, write(tmp_path, "log.jsonl", line, line))
    assert (len(rows_of(done)), dict(done.counts.skipped)) == (1, {"repeated": 1})


def test_old_completions_and_other_models(tmp_path: Path) -> None:
    old = {"model": "davinci-002", "prompt": "Once", "max_tokens": 5, "temperature": 0}
    text = {"choices": [{"text": " upon", "finish_reason": "length"}]}
    done = read(
        tmp_path,
        write(tmp_path, "log.jsonl", {"request": old, "response": text}, {"request": body("q"), "response": answer()}),
    )
    assert [row["prompt"][-1]["content"] for row in rows_of(done)] == ["Once", "q"]
    assert {done.dataset.manifest.teacher.model, *(one.model for one in done.dataset.manifest.more_teachers)} == {
        "davinci-002",
        "gpt-4o-mini",
    }


# ------------------------------------------------------------------------------------------------------------ told aloud


def test_batch_files_in_any_order_with_every_kind_of_failure(tmp_path: Path) -> None:
    asked, given = batch(["a", "b", "c", "d", "e", "f"])
    given[1] = {
        "custom_id": "r1",
        "response": {"status_code": 429, "body": {"error": {"message": "slow down"}}},
        "error": None,
    }
    given[2] = {"custom_id": "r2", "response": None, "error": {"code": "batch_expired", "message": "too late"}}
    given[3]["response"]["body"]["choices"][0]["message"] = {"content": None, "tool_calls": [{"id": "x"}]}
    del given[4]
    stray = {"custom_id": "zz", "response": {"status_code": 200, "body": answer()}}
    files = write(tmp_path, "in.jsonl", *asked), write(tmp_path, "out.jsonl", *reversed(given), stray)
    for order in (files, files[::-1]):
        done = read(tmp_path, *order)
        left_out = {"status-429": 1, "batch_expired": 1, "tool-calls": 1, "unanswered": 1, "without-request": 1}
        assert dict(done.counts.skipped) == left_out
        assert sorted(row["prompt"][-1]["content"] for row in rows_of(done)) == ["a", "f"]
        assert done.counts.examples["status-429"].startswith(f"{files[1]} line 4: ")
        assert done.counts.examples["unanswered"].startswith(f"{files[0]} line 5: ")


def test_a_refusal_and_an_empty_answer_are_told(tmp_path: Path) -> None:
    refused = answer(choices=[{"message": {"content": None, "refusal": "I will not"}, "finish_reason": "stop"}])
    rows = [{"request": body("q"), "response": one} for one in (answer(), refused, answer(" "), {"choices": []})]
    done = read(tmp_path, write(tmp_path, "log.jsonl", *rows))
    assert dict(done.counts.skipped) == {"refused": 1, "empty": 1, "malformed": 1}


@pytest.mark.parametrize(
    ("lines", "words"),
    [
        (["{"], r"log.jsonl line 1 is not valid JSON"),
        ([{"x": 1}], "line 1 has neither a request nor a response, only x"),
        ([{"body": body("q")}], "line 1 has only a request, and no custom_id"),
        ([{"response": answer()}], "line 1 has only an answer, and no custom_id"),
        ([{"custom_id": "a", "body": body("q")}] * 2, r"line 2 has the custom_id 'a', which .* line 1 also has"),
        ([{"request": 5, "response": answer()}], "the request is '5'"),
        ([{"request": body("q"), "response": 5}], "the response is '5'"),
        ([{"request": {"input": "x"}, "response": answer()}], "no row of .* can be imported: .*other-endpoint"),
    ],
)
def test_errors_name_file_line_and_fix(tmp_path: Path, lines: list[Any], words: str) -> None:
    with pytest.raises(UsageError, match=words):
        read(tmp_path, write(tmp_path, "log.jsonl", *lines))
    assert not (tmp_path / "labels/api/v001").exists()


def test_the_command(tmp_path: Path) -> None:
    asked, given = batch(["a", "b"])
    given[1]["response"]["status_code"] = 500
    write(tmp_path, "in.jsonl", *asked)
    write(tmp_path, "out.jsonl", *given)
    command = [sys.executable, "-m", "stillhouse", "datasets"]
    arguments = ["import", "openai-log", "in.jsonl", "out.jsonl", "--into", "paid", "--json"]
    done = subprocess.run([*command, *arguments], cwd=tmp_path, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    result = json.loads(done.stdout)
    assert (result["dataset"], result["left_out"], result["known_keys"]) == ("paid/v001", {"status-500": 1}, 1)
    assert "left out: 1 status-500, first out.jsonl line 2" in done.stderr
    assert "labelling into this dataset reuses them" in done.stderr
    arguments = ["export", "paid", "--to", "openai", "--out", "x", "--json"]
    done = subprocess.run([*command, *arguments], cwd=tmp_path, capture_output=True, text=True, check=False)
    assert (done.returncode, json.loads(done.stdout)["left_out"]) == (0, 0)
    again = subprocess.run([*command, *arguments], cwd=tmp_path, capture_output=True, text=True, check=False)
    assert (again.returncode, "add --force" in again.stderr) == (2, True)

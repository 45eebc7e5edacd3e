"""Answers of vLLM, real and made up, against a decoding by `json` that takes one number at a time."""

import json
import math
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from stillhouse.records import SoftLabels
from stillhouse.teachers.serving import vllm_answers
from stillhouse.teachers.serving.vllm_answers import TAIL_FLOOR, read_generated, read_scored

GENERATED = (  # of vLLM 0.32.0: temperature 2, k = 2, so that every token lies outside the top 2
    b'{"id":"cmpl-b462830a9e67f35e","object":"text_completion","created":1795547153,"model":"teacher","choices":[{"index":0,'
    b'"text":"Biatanks","logprobs":{"text_offset":[0,11,24],"token_logprobs":[-3.112189531326294,-9.210100173950195,'
    b'-12.49319839477539],"tokens":["token_id:50","token_id:6598","token_id:3307"],"top_logprobs":[{"token_id:50":'
    b'-3.112189531326294,"token_id:504":-1.864304780960083,"token_id:60":-1.9625866413116455},{"token_id:6598":'
    b'-9.210100173950195,"token_id:6522":-0.12229453027248383,"token_id:28396":-4.003287315368652},{"token_id:3307":'
    b'-12.49319839477539,"token_id:28":-1.9648547172546387,"token_id:42":-2.5503897666931152}]},"finish_reason":"length",'
    b'"stop_reason":null,"token_ids":[50,6598,3307],"prompt_logprobs":null,"prompt_token_ids":[1,9690,198],"routed_experts":'
    b'null}],"service_tier":null,"system_fingerprint":"vllm-0.32.0-c3ea0ef8","usage":{"prompt_tokens":3,"total_tokens":6,'
    b'"completion_tokens":3,"prompt_tokens_details":null,"completion_tokens_details":null},"metrics":null}'
)
SCORED = (  # "echo": true, "max_tokens": 0, k = 2; prompt_logprobs are cut short and one decoded_token is made awkward
    b'{"id":"cmpl-a9d8b88928c1330d","object":"text_completion","created":1795547165,"model":"teacher","choices":[{"index":0,'
    b'"text":"<|im_start|>system\\nYou are","logprobs":{"text_offset":[0,10,23,35,48],"token_logprobs":[null,'
    b'-7.790428161621094,-1.0396019220352173,-4.18319845199585,-0.7195810079574585],"tokens":["token_id:1","token_id:9690",'
    b'"token_id:198","token_id:2683","token_id:359"],"top_logprobs":[null,{"token_id:9690":-7.790428161621094,"token_id:29":'
    b'-0.9800835251808167,"token_id:28":-2.0739669799804688},{"token_id:198":-1.0396019220352173,"token_id:30":'
    b'-1.8498245477676392},{"token_id:2683":-4.18319845199585,"token_id:19":-1.9515434503555298,"token_id:198":'
    b'-2.7304892539978027},{"token_id:359":-0.7195810079574585,"token_id:2316":-0.9829343557357788}]},"finish_reason":'
    b'"length","stop_reason":null,"token_ids":null,"prompt_logprobs":[null,{"9690":{"logprob":-7.790428161621094,"rank":133,'
    b'"decoded_token":"]}],"},"29":{"logprob":-0.9800835251808167,"rank":1,"decoded_token":"-"}}],"prompt_token_ids":null,'
    b'"routed_experts":null}],"system_fingerprint":"vllm-0.32.0-c3ea0ef8","usage":{"prompt_tokens":5,"total_tokens":5,'
    b'"completion_tokens":0}}'
)
PLAIN = (
    b'{"choices":[{"index":0,"text":"The capital","logprobs":null,"finish_reason":"length","token_ids":[504,3575],'
    b'"prompt_token_ids":null}],"system_fingerprint":null,"usage":{"prompt_tokens":37}}'
)

Rows = list[dict[str, float]]
HOSTILE = st.lists(
    st.sampled_from(
        ['"top_logprobs":[', '{"top_logprobs": []', "]", "[", "{", "}", '"', "\\", '"token_id:7":-0.5', "],", '"prompt_'
         'logprobs":[', '],"prompt_token_ids":', "null", "\n", "é", "\U0001f600", "a"]
    )
).map("".join)  # fmt: skip


@st.composite
def rows_of_logprobs(draw: st.DrawFn) -> tuple[int, Rows]:
    """k, and rows as the server makes them: the chosen token first, the rest falling."""
    k = draw(st.integers(0, 6))
    rows: Rows = []
    for _ in range(draw(st.integers(1, 6))):
        weights = draw(
            st.lists(st.sampled_from([0.0, 1e-9, 1e-5, 0.3, 0.5, 1.0, 4.0, 1e6]), min_size=k + 1, max_size=40)
        )
        total = math.fsum(weights) or 1.0
        logprobs = [max(math.log(weight / total), -9999.0) if weight else -9999.0 for weight in weights]
        ids = draw(st.lists(st.integers(0, 300_000), min_size=len(weights), max_size=len(weights), unique=True))
        ranked = sorted(zip(ids, np.array(logprobs, np.float32).tolist(), strict=True), key=lambda entry: -entry[1])
        chosen = draw(st.sampled_from(ranked))
        rows.append({f"token_id:{token}": logprob for token, logprob in [chosen, *ranked[:k]]})
    return k, rows


def body(rows: list[Any], *, text: str = "", scored: bool = False) -> dict[str, Any]:
    """An answer with those rows; of a scored one the first is null."""
    chosen = [("token_id:1", None) if row is None else next(iter(row.items())) for row in rows]
    logprobs = {
        "tokens": [token for token, _ in chosen],
        "token_logprobs": [logprob for _, logprob in chosen],
        "top_logprobs": rows,
    }
    choice: dict[str, Any] = {"index": 0, "text": text, "logprobs": logprobs, "finish_reason": text or None}
    choice["token_ids"] = None if scored else [int(token[9:]) for token, _ in chosen]
    listed = [None, {"5": {"logprob": -1.0, "rank": 1, "decoded_token": text}}]
    choice |= {"prompt_logprobs": listed if scored else None, "prompt_token_ids": [1, 5]}
    return {"id": text, "choices": [choice], "usage": {"prompt_tokens": 2}, "system_fingerprint": text}


def encoded(data: Any, style: str) -> bytes:
    if style == "shuffled":  # the chosen token is not the first, and all is indented
        logprobs = data["choices"][0]["logprobs"]
        logprobs["top_logprobs"] = [dict(reversed(row.items())) for row in logprobs["top_logprobs"]]
        return json.dumps(data, indent=1).encode()
    separators = {"spaced": (", ", ": "), "tight": (",", ":"), "mixed": (", ", ":"), "odd": (",", ": ")}[style]
    return json.dumps(data, separators=separators, ensure_ascii=style == "spaced").encode()


def brute_force(rows: Rows, k: int) -> tuple[list[list[int]], list[list[float]], list[float]]:
    ids, logprobs, tails = [], [], []
    for row in rows:
        ranked = sorted(((int(name[9:]), value) for name, value in row.items()), key=lambda entry: -entry[1])
        ids.append([token for token, _ in ranked[:k]])
        logprobs.append([value for _, value in ranked[:k]])
        beside = math.exp(ranked[k][1]) if len(ranked) > k else 0.0
        tails.append(max(1.0 - math.fsum(math.exp(value) for value in logprobs[-1]), beside, TAIL_FLOOR))
    return ids, logprobs, tails


def assert_like(soft: SoftLabels | None, rows: Rows, k: int) -> None:
    ids, logprobs, tails = brute_force(rows, k)
    assert soft is not None
    dtypes = [array.dtype.name for array in (soft.token_ids, soft.logprobs, soft.tail_logprob)]
    assert dtypes == ["int32", "float16", "float32"]
    assert soft.token_ids.shape == (len(rows), k)
    assert soft.token_ids.tolist() == ids
    assert soft.logprobs.tolist() == np.array(logprobs).reshape(len(rows), k).astype(np.float16).tolist()
    np.testing.assert_allclose(np.exp(soft.tail_logprob.astype(float)), tails, rtol=1e-5, atol=1e-12)


STYLES = st.sampled_from(["spaced", "tight", "mixed", "odd", "shuffled"])


@settings(max_examples=200)
@given(given_rows=rows_of_logprobs(), text=HOSTILE, style=STYLES)
def test_a_generated_answer_is_what_json_says(given_rows: tuple[int, Rows], text: str, style: str) -> None:
    k, rows = given_rows
    data = body(rows, text=text)
    answer = read_generated(encoded(data, style), k)
    choice = data["choices"][0]
    assert (answer.text, answer.finish_reason, answer.fingerprint) == (text, text or None, text)
    assert answer.usage == {"prompt_tokens": 2}
    assert answer.token_ids.tolist() == choice["token_ids"]
    assert answer.prompt_token_ids is not None and answer.prompt_token_ids.tolist() == [1, 5]
    assert answer.logprobs is not None and answer.logprobs.dtype == np.float32
    assert answer.logprobs.tolist() == choice["logprobs"]["token_logprobs"]
    if style != "shuffled":  # where equal ones stand in another order
        assert_like(answer.soft, rows, k)
    else:
        expected = read_generated(json.dumps(body(rows, text=text)).encode(), k).soft
        assert answer.soft is not None and expected is not None
        assert np.array_equal(answer.soft.logprobs, expected.logprobs)
        assert np.array_equal(answer.soft.tail_logprob, expected.tail_logprob)


@settings(max_examples=100)
@given(
    given_rows=rows_of_logprobs(), text=HOSTILE, style=STYLES.filter(lambda style: style != "shuffled"), data=st.data()
)
def test_a_scored_answer_is_the_end_of_what_json_says(
    given_rows: tuple[int, Rows], text: str, style: str, data: st.DataObject
) -> None:
    k, rows = given_rows
    length = data.draw(st.integers(0, len(rows)))
    last = rows[len(rows) - length :]
    completion = [int(next(iter(row))[9:]) for row in last]
    answer = read_scored(encoded(body([None, *rows], text=text, scored=True), style), k, completion)
    assert answer.token_ids.tolist() == completion
    assert answer.logprobs is not None
    assert answer.logprobs.tolist() == [next(iter(row.values())) for row in last]
    assert_like(answer.soft, last, k)


@pytest.mark.parametrize("style", ["spaced", "tight"])
def test_what_json_dumps_writes_is_read_in_place(style: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delattr(vllm_answers, "_reserialize")
    rows = [{"token_id:9": -7.5, "token_id:504": -1e-05}, {"token_id:0": -0.0, "token_id:151935": -9999.0}]
    rows.append({"token_id:3": -0.7})
    assert_like(read_generated(encoded(body(rows[:2]), style), 1).soft, rows[:2], 1)
    assert_like(read_scored(encoded(body([None, *rows], scored=True), style), 1, [0, 3]).soft, rows[1:], 1)


def test_a_real_answer_whose_tokens_lie_outside_the_top_k() -> None:
    answer = read_generated(GENERATED, 2)
    assert answer.text == "Biatanks" and answer.finish_reason == "length"
    assert answer.fingerprint == "vllm-0.32.0-c3ea0ef8" and answer.usage["completion_tokens"] == 3
    assert answer.token_ids.tolist() == [50, 6598, 3307]
    assert answer.prompt_token_ids is not None and answer.prompt_token_ids.tolist() == [1, 9690, 198]
    assert answer.soft is not None
    assert answer.soft.token_ids.tolist() == [[504, 60], [6522, 28396], [28, 42]]
    assert answer.soft.logprobs[0].tolist() == np.array([-1.864304780960083, -1.9625866413116455], np.float16).tolist()
    assert math.exp(answer.soft.tail_logprob[0]) == pytest.approx(1 - math.exp(-1.8643048) - math.exp(-1.9625866))


def test_a_real_scored_answer() -> None:
    answer = read_scored(SCORED, 2, [198, 2683, 359])
    assert answer.text == "<|im_start|>system\nYou are" and answer.prompt_token_ids is None
    assert answer.logprobs is not None
    assert answer.logprobs.tolist() == [-1.0396019220352173, -4.18319845199585, -0.7195810079574585]
    assert answer.soft is not None
    assert answer.soft.token_ids.tolist() == [[198, 30], [19, 198], [359, 2316]]


def test_the_prompt_of_a_scored_answer_ends_before_the_completion() -> None:
    content = SCORED.replace(b'"prompt_token_ids":null', b'"prompt_token_ids":[1,9690,198,2683,359]')
    prompt = read_scored(content, 2, [2683, 359]).prompt_token_ids
    assert prompt is not None and prompt.tolist() == [1, 9690, 198]


@pytest.mark.parametrize("content", [PLAIN, GENERATED])
def test_no_labels_where_none_were_asked_for(content: bytes) -> None:
    answer = read_generated(content, None)
    assert answer.logprobs is None and answer.soft is None


def test_a_sum_above_one_by_rounding_leaves_the_floor() -> None:
    rows = [{"token_id:4": 1e-4, "token_id:5": -30.0}, {"token_id:4": 0.0, "token_id:5": -9999.0}]
    soft = read_generated(encoded(body(rows), "tight"), 2).soft
    assert soft is not None
    assert np.exp(soft.tail_logprob) == pytest.approx([TAIL_FLOOR, TAIL_FLOOR], rel=1e-5)


def test_a_token_outside_the_top_k_keeps_its_mass_in_the_tail() -> None:
    soft = read_generated(encoded(body([{"token_id:9": -10.0, "token_id:4": 0.0}]), "tight"), 1).soft
    assert soft is not None and soft.token_ids.tolist() == [[4]]
    assert soft.tail_logprob.tolist() == [-10.0]


def test_an_unclamped_log_probability_fits_into_float16() -> None:
    soft = read_generated(encoded(body([{"token_id:4": -0.1, "token_id:5": -1e30}]), "tight"), 2).soft
    assert soft is not None and np.isfinite(soft.logprobs).all()


@pytest.mark.parametrize("cut", range(0, len(GENERATED), 7))
def test_a_truncated_answer_is_refused(cut: int) -> None:
    with pytest.raises(ValueError, match="."):
        read_generated(GENERATED[:cut], 2)


@pytest.mark.parametrize(
    ("old", "new"),
    [
        (b"-9.210100173950195", b"NaN"),
        (b"-9.210100173950195", b"1e999"),
        (b"-9.210100173950195", b"null"),
        (b"-0.12229453027248383", b"null"),
        (b"-0.12229453027248383", b'"-0.1"'),
        (b"-0.12229453027248383", b"-Infinity"),
        (b"-0.12229453027248383", b"5.0"),  # no logarithm of a probability
        (b'"token_ids":[50,6598,3307]', b'"token_ids":[50,6598]'),
        (b'"token_ids":[50,6598,3307]', b'"token_ids":[50,6598,28]'),
        (b'"token_ids":[50,6598,3307]', b'"token_ids":[50,6598,3307.5]'),
        (b'"token_ids":[50,6598,3307]', b'"token_ids":null'),
        (b'"prompt_token_ids":[1,9690,198]', b'"prompt_token_ids":[1,-9690,198]'),
        (b'"prompt_token_ids":[1,9690,198]', b'"prompt_token_ids":"198"'),
        (b'"token_logprobs":[-3.112189531326294,', b'"token_logprobs":['),
        (b'"top_logprobs":[', b'"top_logprobs":[{},'),
        (b'"top_logprobs":[', b'"top_logprobs":[null,'),
        (b'"top_logprobs":[', b'"bottom_logprobs":['),
        (b',"token_id:504":-1.864304780960083,"token_id:60":-1.9625866413116455', b""),  # fewer than k
        (b',"token_id:60"', b',"token_id:61":-9.5,"token_id:60"'),  # more than k + 1
        (b'"token_id:60"', b'" the"'),
        (b'"token_id:60"', b'" ]"'),
        (b'"token_id:60"', b'"token_id:-60"'),
        (b'"token_id:60"', b'"token_id:3000000000"'),
        (b'"text":"Biatanks",', b""),
        (b'"usage"', b'"use"'),
        (b'"choices"', b'"choice"'),
    ],
)
def test_what_is_no_such_answer_is_refused(old: bytes, new: bytes) -> None:
    assert old in GENERATED
    with pytest.raises(ValueError, match="."):
        read_generated(GENERATED.replace(old, new), 2)


@pytest.mark.parametrize("content", [b"", b"null", b"[]", b'{"choices":[]}', b'{"choices":[1]}', PLAIN])
def test_what_has_no_log_probabilities_is_refused(content: bytes) -> None:
    with pytest.raises(ValueError, match="."):
        read_generated(content, 2)
    with pytest.raises(ValueError, match="."):
        read_scored(content, 2, [1])


@pytest.mark.parametrize("completion", [[2683, 360], [359, 2683], [1, 9690, 198, 2683, 359], [7] * 9])
def test_a_scored_answer_has_to_end_with_the_completion(completion: list[int]) -> None:
    with pytest.raises(ValueError, match="."):
        read_scored(SCORED, 2, completion)

"""The `openai` teacher alone: what it sends, what it makes of what comes back, and what it refuses before it sends."""

import asyncio
import math
import pickle
import traceback
from collections.abc import Iterator, Mapping
from typing import Any

import httpx2
import pytest
from pydantic import SecretStr

from stillhouse.errors import RecipeError, TeacherUnavailable
from stillhouse.recipe.label import LabelSettings
from stillhouse.recipe.teacher import PriceSettings, TeacherSettings
from stillhouse.records import Message, Prompt, TokenLogprob
from stillhouse.teachers.base import Answer, AnswerSettings, AttemptFailed, Outcome, Refusal, Request
from stillhouse.teachers.openai import OpenAiTeacher, open_teacher
from stillhouse.teachers.serving.openai_api import Endpoint, OpenAiApi, Reply, Timeouts
from tests.stand_in import RunningStandIn, running_stand_in

KEY = "sk-test-0123456789abcdef"
QUESTION = Prompt((Message("system", "Be brief."), Message("user", "Name a colour.")))


@pytest.fixture(scope="module")
def running() -> Iterator[RunningStandIn]:
    with running_stand_in() as server:
        yield server


@pytest.fixture
def server(running: RunningStandIn, monkeypatch: pytest.MonkeyPatch) -> RunningStandIn:
    """The module's stand-in with nothing counted yet; the environment names a key and no other server."""
    monkeypatch.setenv("OPENAI_API_KEY", KEY)
    for name in ("OPENAI_BASE_URL", "OPENAI_ORG_ID", "OPENAI_PROJECT_ID"):
        monkeypatch.delenv(name, raising=False)
    stats = running.stats
    stats.requests = 0
    for counted in (stats.billed, stats.seen, stats.bodies, stats.keys):
        counted.clear()
    return running


def teacher_at(base_url: str | None, *, price: PriceSettings | None = None, **parts: Any) -> OpenAiTeacher:
    """A teacher; `label` is one of the parts, the others are its options."""
    label = LabelSettings.model_validate(parts.pop("label", {}))
    options = {"base_url": base_url, **parts} if base_url else parts
    return open_teacher(TeacherSettings(kind="openai", model="stand-in", price=price, options=options), label, 0)


def request_of(teacher: OpenAiTeacher, prompt: Prompt | str = QUESTION) -> Request:
    asked = Prompt((Message("user", prompt),)) if isinstance(prompt, str) else prompt
    return Request(asked, 0, AnswerSettings.from_label(teacher.identity, LabelSettings()))


def ask(teacher: OpenAiTeacher, prompt: Prompt | str = QUESTION) -> Outcome:
    async def once() -> Outcome:
        try:
            (outcome,) = await teacher.answer([request_of(teacher, prompt)])
            return outcome
        finally:
            await teacher.close()

    return asyncio.run(once())


def answer_of(outcome: Outcome) -> Answer:
    assert isinstance(outcome, Answer), outcome
    return outcome


# ------------------------------------------------------------------------------------------------------- what is sent

MESSAGES = [{"role": "system", "content": "Be brief."}, {"role": "user", "content": "Name a colour."}]
PLAIN = {"model": "stand-in", "temperature": 0.7, "max_tokens": 256, "messages": MESSAGES}
JSON = {"type": "json_object"}


@pytest.mark.parametrize(
    ("parts", "changed"),
    [
        ({}, {}),
        (
            {"label": {"sampling": {"temperature": 0, "top_p": 0.9, "max_tokens": 7}}},
            {"temperature": 0, "top_p": 0.9, "max_tokens": 7},
        ),
        ({"label": {"top_logprobs": 3}}, {"logprobs": True, "top_logprobs": 3}),
        ({"label": {"top_logprobs": 0}}, {"logprobs": True, "top_logprobs": 0}),
        ({"label": {"response_format": JSON}}, {"response_format": JSON}),
        (
            {"extra_body": {"seed": 5, "chat_template_kwargs": {"thinking": False}}},
            {"seed": 5, "chat_template_kwargs": {"thinking": False}},
        ),
        ({"extra_body": {"temperature": None}}, {"temperature": None}),
        ({"max_tokens_field": "max_completion_tokens"}, {"max_tokens": None, "max_completion_tokens": 256}),
        ({"api": "completions"}, {"messages": None, "prompt": "Be brief.\nName a colour."}),
        (
            {"api": "completions", "label": {"top_logprobs": 3}},
            {"messages": None, "prompt": "Be brief.\nName a colour.", "logprobs": 3},
        ),
    ],
)
def test_the_body_is_the_recipe_s(server: RunningStandIn, parts: dict[str, Any], changed: dict[str, Any]) -> None:
    assert answer_of(ask(teacher_at(server.base_url, **parts))).text == "Blue, I think."
    expected = {name: value for name, value in {**PLAIN, **changed}.items() if value is not None}
    assert list(server.stats.bodies) == [expected]


def test_the_key_of_the_named_variable_is_sent_without_stray_white_space(
    server: RunningStandIn, monkeypatch: pytest.MonkeyPatch
) -> None:
    ask(teacher_at(server.base_url))
    monkeypatch.setenv("OTHER_KEY", f" {KEY}-other\n")
    ask(teacher_at(server.base_url, api_key_env="OTHER_KEY"))
    assert server.stats.keys == {f"Bearer {KEY}", f"Bearer {KEY}-other"}


def test_a_server_on_this_machine_needs_no_key(server: RunningStandIn, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("OPENAI_API_KEY")
    teacher = teacher_at(server.base_url)
    assert answer_of(ask(teacher)).text
    refusal = ask(teacher, "Name a colour. !400*")
    assert isinstance(refusal, Refusal)
    assert "***" not in refusal.detail


def test_the_base_url_of_the_environment_is_used_where_the_recipe_has_none(
    server: RunningStandIn, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("OPENAI_BASE_URL", server.base_url + "/")
    teacher = teacher_at(None)
    assert teacher.identity.endpoint == server.base_url
    assert answer_of(ask(teacher)).text


def test_a_teacher_that_was_closed_opens_again(server: RunningStandIn) -> None:
    teacher = teacher_at(server.base_url)
    assert ask(teacher) == ask(teacher)
    asyncio.run(teacher.close())
    asyncio.run(teacher_at(server.base_url).close())  # and one that never sent anything closes


def test_the_fingerprint_of_the_server_is_kept_and_is_no_part_of_a_key(server: RunningStandIn) -> None:
    teacher = teacher_at(server.base_url)
    before = teacher.identity
    ask(teacher)
    assert (before.fingerprint, teacher.identity.fingerprint) == (None, "fp_stand_in")
    assert before.shaping() == teacher.identity.shaping()


@pytest.mark.parametrize(
    ("one", "other", "same"),
    [
        ({}, {"timeouts": {"read": 5}}, True),
        ({}, {"max_tokens_field": "max_completion_tokens"}, True),
        ({}, {"extra_body": {"seed": 1}}, False),
        ({}, {"api": "completions"}, False),
    ],
)
def test_what_shapes_an_answer_is_part_of_the_identity(
    server: RunningStandIn, one: dict[str, Any], other: dict[str, Any], same: bool
) -> None:
    identities = [teacher_at(server.base_url, **options).identity for options in (one, other)]
    assert (identities[0].shaping() == identities[1].shaping()) is same


# ------------------------------------------------------------------------------------------------- what is made of it


@pytest.mark.parametrize(
    ("word", "reason", "server_at_fault", "overloaded", "wait", "cost"),
    [
        ("429", "overloaded", True, True, 0.0, 0.0),
        ("429:1.5", "overloaded", True, True, 1.5, 0.0),
        ("429ms:20", "overloaded", True, True, 0.02, 0.0),
        ("408", "server-error", False, False, 0.0, 0.0),
        ("409", "server-error", False, False, 0.0, 0.0),
        ("425", "server-error", False, False, 0.0, 0.0),
        ("500", "server-error", False, False, 0.0, 0.0),
        ("502", "overloaded", True, False, 0.0, 0.0),
        ("503", "overloaded", True, True, 0.0, 0.0),
        ("504", "timeout", False, True, 0.0, None),  # of a gateway: the model behind it may have written the answer
        ("529", "overloaded", True, True, 0.0, 0.0),
        ("gone", "cut-off", False, False, 0.0, None),
        ("garbage", "cut-off", False, False, 0.0, None),
        ("reset", "cut-off", False, False, 0.0, None),
        ("truncated", "cut-off", False, False, 0.0, None),
        ("html", "malformed", False, False, 0.0, None),
        ("halfjson", "malformed", False, False, 0.0, None),
        ("hang", "timeout", False, True, 0.0, None),
        ("drip", "timeout", False, True, 0.0, None),
    ],
)
def test_a_failed_attempt_says_whose_fault_it_is_and_what_it_may_have_cost(
    server: RunningStandIn,
    word: str,
    reason: str,
    server_at_fault: bool,
    overloaded: bool,
    wait: float,
    cost: float | None,
) -> None:
    limits: dict[str, Any] = {"timeouts": {"read": 0.5, "total": 0.7}} if reason == "timeout" else {}
    teacher = teacher_at(server.base_url, **limits)
    with pytest.raises(AttemptFailed) as told:
        ask(teacher, f"Name a colour. !{word}*")
    trouble = told.value
    assert (trouble.reason, trouble.server_at_fault, trouble.overloaded) == (reason, server_at_fault, overloaded)
    assert (trouble.wait, trouble.cost_usd) == (wait, cost)


def test_a_refused_connection_is_the_server_s_and_costs_nothing(server: RunningStandIn) -> None:
    with pytest.raises(AttemptFailed, match="cannot be reached") as told:
        ask(teacher_at("http://127.0.0.1:9/v1"))
    assert (told.value.reason, told.value.server_at_fault, told.value.cost_usd) == ("unreachable", True, 0.0)


@pytest.mark.parametrize(
    ("word", "words"),
    [
        ("401", "the API key is not accepted"),
        ("403", "the API key has no permission"),
        ("404", "not found"),
        ("quota", "Add credit and run again"),
        ("moved", "redirects to http://127.0.0.2:9/v1.*Check teacher.options.base_url"),
    ],
)
def test_what_concerns_everybody_says_what_to_mend(server: RunningStandIn, word: str, words: str) -> None:
    with pytest.raises(TeacherUnavailable, match=words):
        ask(teacher_at(server.base_url), f"Name a colour. !{word}*")


@pytest.mark.parametrize(
    ("said", "reason"),
    [
        ({"message": "This model's maximum context length is 4096 tokens"}, "too-long"),
        ({"message": "Please reduce the length of the messages", "code": "context_length_exceeded"}, "too-long"),
        ({"message": "filtered", "code": "content_policy_violation"}, "policy"),
        ({"message": "The response was filtered", "code": "content_filter", "type": "responsible_ai"}, "policy"),
        ({"message": "roles must alternate"}, "bad-request"),
        ({"message": "Unsupported parameter: 'max_tokens'", "code": "unsupported_parameter"}, None),
        ({"message": "API key not valid. Please pass a valid API key.", "code": 400}, None),
    ],
)
def test_a_400_is_of_one_prompt_unless_it_says_that_it_is_of_the_recipe(
    server: RunningStandIn, said: dict[str, Any], reason: str | None
) -> None:
    api = OpenAiApi(teacher_at(server.base_url)._endpoint)
    response = httpx2.Response(400, json={"error": said})
    if reason is None:
        with pytest.raises(TeacherUnavailable, match="every prompt would get this error"):
            api._handle_error_status(response)
    else:
        assert api._handle_error_status(response).reason == reason


class Canned(OpenAiApi):
    """Stands for the connection: every attempt brings the same body."""

    def __init__(self, body: Mapping[str, Any]) -> None:
        super().__init__(Endpoint("http://127.0.0.1:9/v1", SecretStr("none"), Timeouts()))
        self._body = body

    async def post(self, _: str, __: Mapping[str, Any]) -> Reply:
        return Reply(self._body, pause=0.0)


def canned(body: Mapping[str, Any], **parts: Any) -> Outcome:
    teacher = teacher_at("http://127.0.0.1:9/v1", **parts)
    teacher._api = Canned(body)
    return ask(teacher)


def chat_body(message: Any = None, *, usage: Any = None, **choice: Any) -> dict[str, Any]:
    given = {"role": "assistant", "content": "Blue."} if message is None else message
    return {"choices": [{"message": given, "finish_reason": "stop", **choice}], "usage": usage}


@pytest.mark.parametrize(
    ("finish", "kept"),
    [
        ("stop", "stop"),
        ("STOP", "stop"),
        ("eos", "stop"),
        ("end_turn", "stop"),
        ("length", "length"),
        ("max_tokens", "length"),
        ("content_filter", "content_filter"),
        ("SAFETY", "content_filter"),
        ("tool_calls", "tool_calls"),
        ("function_call", "tool_calls"),
        ("something new", "other"),
        (None, "other"),
        (7, "other"),
    ],
)
def test_finish_reasons_are_mapped(finish: Any, kept: str) -> None:
    assert answer_of(canned(chat_body(finish_reason=finish))).finish_reason == kept


@pytest.mark.parametrize(
    ("message", "text", "reasoning"),
    [
        ({"content": "Blue."}, "Blue.", None),
        ({"content": "Blue.", "reasoning_content": "Skies."}, "Blue.", "Skies."),
        ({"content": "Blue.", "reasoning": "Skies."}, "Blue.", "Skies."),
        ({"content": "Blue.", "reasoning": {"effort": "low"}}, "Blue.", None),
        ({"content": [{"type": "thinking", "thinking": []}, {"type": "text", "text": "Blue."}]}, "Blue.", None),
        ({"content": ["Blue."]}, None, None),
        ({"content": None}, None, None),
        ({"content": {"text": "Blue."}}, None, None),
        ({"content": " \n"}, None, None),
        ({}, None, None),
        ("Blue.", None, None),
    ],
)
def test_a_message_that_arrived_is_an_answer_or_an_empty_one(
    message: Any, text: str | None, reasoning: str | None
) -> None:
    outcome = canned(chat_body(message))
    if text is None:
        assert isinstance(outcome, Refusal)
        assert (outcome.reason, outcome.answer is not None) == ("empty", True)
    else:
        assert (answer_of(outcome).text, answer_of(outcome).reasoning) == (text, reasoning)


def test_a_structured_refusal_is_a_rejection_with_its_words() -> None:
    outcome = canned(chat_body({"content": None, "refusal": "I cannot help with that."}))
    assert isinstance(outcome, Refusal)
    assert (outcome.reason, outcome.detail) == ("refused", "I cannot help with that.")


@pytest.mark.parametrize("choices", [None, [], {}, "none", [None], [7], [{}], [[]]])
@pytest.mark.parametrize("api", ["chat", "completions"])
def test_a_body_without_a_choice_is_asked_for_again_and_may_have_cost(choices: Any, api: str) -> None:
    with pytest.raises(AttemptFailed) as told:
        canned({"choices": choices, "error": {"message": "upstream is away"}}, api=api)
    assert (told.value.reason, told.value.cost_usd) == ("malformed", None)
    assert "upstream is away" in told.value.detail


@pytest.mark.parametrize("text", ["", "Blue, because the"])
def test_half_an_answer_with_an_error_is_asked_for_again_at_what_it_cost(text: str) -> None:
    error = {"message": "the provider went away", "code": 502}
    body = chat_body(
        {"role": "assistant", "content": text},
        usage={"prompt_tokens": 20, "completion_tokens": 3},
        finish_reason="error",
        error=error,
    )
    with pytest.raises(AttemptFailed, match="went away") as told:
        canned(body, price=PRICE)
    assert told.value.cost_usd == pytest.approx(26.0)
    with pytest.raises(AttemptFailed, match="finish_reason 'error'"):
        canned(chat_body({"role": "assistant", "content": text}, finish_reason="error"))


PRICE = PriceSettings(input_usd_per_million=1e6, output_usd_per_million=2e6)


@pytest.mark.parametrize(
    ("usage", "tokens", "cost"),
    [
        ({"prompt_tokens": 20, "completion_tokens": 10}, (20, 10), 40.0),
        ({"prompt_tokens": 20.0, "completion_tokens": 0}, (20, 0), 20.0),
        ({"prompt_tokens": 20}, (20, None), None),
        ({"prompt_tokens": "20", "completion_tokens": -1}, (None, None), None),
        ({"prompt_tokens": True, "completion_tokens": 2**40}, (None, None), None),
        ({"prompt_tokens": math.nan, "completion_tokens": math.inf}, (None, None), None),
        (None, (None, None), None),
        ([], (None, None), None),
        ("20", (None, None), None),
    ],
)
def test_usage_is_believed_where_it_can_be(usage: Any, tokens: tuple[Any, Any], cost: float | None) -> None:
    answer = answer_of(canned(chat_body(usage=usage), price=PRICE))
    assert (answer.prompt_tokens, answer.completion_tokens) == tokens
    assert answer.cost_usd == cost


@pytest.mark.parametrize(
    ("details", "dollars"), [({"cached_tokens": 1000}, 75e-6), ({"cached_tokens": 10**6}, 75e-6), ([], 150e-6)]
)
def test_cached_tokens_are_cheaper_and_never_more_than_the_prompt(
    monkeypatch: pytest.MonkeyPatch, details: Any, dollars: float
) -> None:
    monkeypatch.setenv("OPENAI_API_KEY", KEY)
    settings = TeacherSettings(kind="openai", model="gpt-4o-mini", options={"base_url": "https://api.openai.com/v1"})
    teacher = open_teacher(settings, LabelSettings(), 0)
    usage = {"prompt_tokens": 1000, "completion_tokens": 0, "prompt_tokens_details": details}
    teacher._api = Canned(chat_body(usage=usage))
    assert answer_of(ask(teacher)).cost_usd == pytest.approx(dollars)


CHAT_LOGPROBS = {"content": [{"token": "Blue", "logprob": -0.5, "top_logprobs": [{"token": "Red", "logprob": -1.5}]}]}
OLD_LOGPROBS = {"tokens": ["Blue"], "token_logprobs": [-0.5], "top_logprobs": [{"Red": -1.5}]}
BLUE = (TokenLogprob("Blue", -0.5, (("Red", -1.5),)),)


@pytest.mark.parametrize(
    ("given", "kept"),
    [
        (CHAT_LOGPROBS, BLUE),
        (OLD_LOGPROBS, BLUE),
        ({"content": [{"token": "Blue", "logprob": -0.5}]}, (TokenLogprob("Blue", -0.5),)),
        ({"tokens": ["Blue"], "token_logprobs": [-0.5], "top_logprobs": None}, (TokenLogprob("Blue", -0.5),)),
        ({"tokens": ["Blue"], "token_logprobs": [-0.5], "top_logprobs": [None]}, (TokenLogprob("Blue", -0.5),)),
        ({"content": []}, ()),
        (None, None),
        ({}, None),
        ({"content": [{"token": "Blue"}]}, None),
        ({"content": "Blue"}, None),
        ({"tokens": ["Blue", "."], "token_logprobs": [-0.5]}, None),
        ({"tokens": ["Blue"], "token_logprobs": [None]}, None),
        (7, None),
    ],
)
def test_token_log_probabilities_are_kept_and_spoil_no_answer(given: Any, kept: Any) -> None:
    answer = answer_of(canned(chat_body(logprobs=given)))
    assert (answer.text, answer.token_logprobs) == ("Blue.", kept)


def test_an_answer_tells_that_nothing_remains(server: RunningStandIn) -> None:
    assert answer_of(ask(teacher_at(server.base_url), "Name a colour. !remaining:2.5")).pause == 2.5


# ----------------------------------------------------------------------------------------- what is refused beforehand


@pytest.mark.parametrize(
    ("parts", "words"),
    [
        ({"base_url": "https://example.org/v1"}, "OPENAI_API_KEY: the environment variable is not set"),
        (
            {"base_url": "https://example.org/v1", "api_key_env": "MY_KEY"},
            "MY_KEY: the environment variable is not set",
        ),
        ({"base_url": "http://user:pass@127.0.0.1/v1"}, "contains a user, a password or a key"),
        ({"base_url": "http://user@127.0.0.1/v1"}, "contains a user, a password or a key"),
        ({"base_url": "http://127.0.0.1/v1?key=hidden"}, "contains a user, a password or a key"),
        ({"base_url": "127.0.0.1:8000/v1"}, "it has no scheme"),
        ({"base_url": "ftp://127.0.0.1/v1"}, "its scheme is ftp"),
        ({"label": {"soft": {"k": 4}}}, "label.soft: soft labels need token ids"),
        ({"label": {"mode": "score"}}, "label.mode is 'score'"),
        ({"timeouts": {"read": 0}}, "teacher.options.timeouts.read"),
        ({"apy": "chat"}, "teacher.options.apy.*Did you mean 'api'"),
        ({"api_key": "sk-hidden"}, "Did you mean 'api_key_env'"),
        ({"extra_body": {"model": "other"}}, "extra_body.model: it cannot be set here. Use teacher.model"),
        ({"extra_body": {"stream": True}}, "extra_body.stream"),
        ({"extra_body": {"n": 5}}, "Use label.samples"),
        ({"extra_body": {"max_tokens": None}}, "Use label.sampling.max_tokens"),
        ({"extra_body": {"day": object()}}, "teacher.options.extra_body.day"),
    ],
)
def test_a_wrong_recipe_is_refused_before_anything_is_sent(
    monkeypatch: pytest.MonkeyPatch, parts: dict[str, Any], words: str
) -> None:
    monkeypatch.delenv("OPENAI_API_KEY", raising=False)
    with pytest.raises(RecipeError, match=words) as told:
        teacher_at(parts.pop("base_url", "http://127.0.0.1:9/v1"), **parts)
    assert "pass@" not in str(told.value)
    assert "hidden" not in str(told.value)


def test_a_model_must_be_named() -> None:
    with pytest.raises(RecipeError, match="teacher.model is ''"):
        open_teacher(TeacherSettings(kind="openai"), LabelSettings(), 0)


@pytest.mark.parametrize("key", ["sk-two\nlines-0123", "sk-dash–0123456789", "sk-bell\x07-0123456"])
def test_a_key_that_cannot_be_one_is_refused_without_being_shown(monkeypatch: pytest.MonkeyPatch, key: str) -> None:
    monkeypatch.setenv("OPENAI_API_KEY", key)
    with pytest.raises(RecipeError, match="contains characters that no API key has") as told:
        teacher_at("http://127.0.0.1:9/v1")
    assert told.value.setting == "OPENAI_API_KEY"
    assert "0123" not in str(told.value)


@pytest.mark.parametrize("key", [KEY, "0123456789abcdef0123456789abcdef", "Ab/cD+eF9/gH==", "q7xZ_9"])
@pytest.mark.parametrize("word", ["key400*", "key401*", "key500*", "key200*", "html*", "reset*", "gone*"])
def test_what_went_wrong_never_shows_the_key(
    server: RunningStandIn, monkeypatch: pytest.MonkeyPatch, word: str, key: str
) -> None:
    monkeypatch.setenv("OPENAI_API_KEY", key)
    teacher = teacher_at(server.base_url)
    try:
        told = repr(ask(teacher, f"Name a colour. !{word}"))
    except (AttemptFailed, TeacherUnavailable) as error:
        told = "".join(traceback.format_exception(error)) + repr(error) + repr(vars(error))
        told += repr(pickle.dumps(str(error)))
    assert key not in told
    assert key not in repr((teacher, teacher.identity, teacher._endpoint, vars(teacher)))

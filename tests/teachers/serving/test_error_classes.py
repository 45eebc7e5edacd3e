"""What an error means: for one prompt, for the server at this moment, or for every request."""

import pytest
from pydantic import SecretStr

from stillhouse.errors import TeacherRefused
from stillhouse.teachers.base import AttemptFailed
from stillhouse.teachers.serving.error_bodies import ErrorBody
from stillhouse.teachers.serving.openai_api import Endpoint, OpenAiApi, Timeouts


@pytest.fixture
def api() -> OpenAiApi:
    return OpenAiApi(Endpoint("http://127.0.0.1:9/v1", SecretStr("4f9c/Zq+77e1"), Timeouts()))


@pytest.mark.parametrize(
    ("status", "error", "reason", "cost"),
    [
        (200, ErrorBody("away", "502"), "overloaded", 0.25),
        (200, ErrorBody("away", "500"), "server-error", 0.25),
        (200, ErrorBody("away", "504"), "timeout", None),
        (200, ErrorBody("what?"), "malformed", 0.25),
        (504, ErrorBody("away"), "timeout", None),
        (408, ErrorBody("away"), "server-error", 0.25),
        (409, ErrorBody("conflict"), "server-error", 0.25),
        (424, ErrorBody("a dependency failed"), "server-error", 0.25),
        (425, ErrorBody("too early"), "server-error", 0.25),
        (599, ErrorBody("away"), "server-error", 0.25),
    ],
)
def test_what_may_pass_is_tried_again_at_its_cost(
    api: OpenAiApi, status: int, error: ErrorBody, reason: str, cost: float | None
) -> None:
    with pytest.raises(AttemptFailed) as told:
        api.classify(status, error, cost_usd=0.25)
    assert (told.value.reason, told.value.cost_usd) == (reason, cost)


@pytest.mark.parametrize(
    ("status", "error"),
    [
        (200, ErrorBody("no", "invalid_api_key")),
        (200, ErrorBody("no", "401")),
        (400, ErrorBody("no", "insufficient_quota")),
        (429, ErrorBody("no", "", "insufficient_quota")),
        (400, ErrorBody("no", "unsupported_parameter", parameter="max_tokens")),
        (400, ErrorBody("no", "model_not_found")),
        (403, ErrorBody("no")),
        (418, ErrorBody("a teapot")),
    ],
)
def test_what_every_prompt_would_get_is_refused_at_once(api: OpenAiApi, status: int, error: ErrorBody) -> None:
    with pytest.raises(TeacherRefused):
        api.classify(status, error)


@pytest.mark.parametrize(
    ("status", "error", "reason"),
    [
        (400, ErrorBody("no", "unsupported_value", parameter="messages[0].role"), "bad-request"),
        (200, ErrorBody("maximum context length is 16", "400"), "too-long"),
        (403, ErrorBody("flagged by moderation"), "policy"),
        (422, ErrorBody("no"), "bad-request"),
    ],
)
def test_what_may_be_of_one_prompt_is_a_refusal_under_suspicion(
    api: OpenAiApi, status: int, error: ErrorBody, reason: str
) -> None:
    refusal = api.classify(status, error)
    assert (refusal.reason, refusal.suspect is not None) == (reason, True)

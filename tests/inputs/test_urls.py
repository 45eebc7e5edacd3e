"""Base URLs: what is accepted as it is meant, and what is refused before a request is made of it."""

import httpx2
import pytest

from stillhouse.errors import RecipeError
from stillhouse.inputs.urls import check_base_url, join_path, mask_secrets, without_v1

SETTING = "teacher.options.base_url"
AZURE = "https://mine.openai.azure.com/openai/deployments/gpt"


@pytest.mark.parametrize(
    ("given", "base_url"),
    [
        ("http://127.0.0.1:8000/v1", "http://127.0.0.1:8000/v1"),
        ("http://127.0.0.1:8000/v1/", "http://127.0.0.1:8000/v1"),
        ("http://127.0.0.1:8000/v1//", "http://127.0.0.1:8000/v1"),
        (" http://127.0.0.1:8000/v1\n", "http://127.0.0.1:8000/v1"),
        ("\thttp://127.0.0.1:8000/v1/\r\n", "http://127.0.0.1:8000/v1"),
        ("https://api.openai.com/v1", "https://api.openai.com/v1"),
        ("HTTPS://API.OpenAI.com/v1", "HTTPS://API.OpenAI.com/v1"),  # a key holds it as it was written
        ("http://localhost", "http://localhost"),
        ("http://my_vllm:8000/v1", "http://my_vllm:8000/v1"),  # as services of compose are named
        ("http://vllm.svc.cluster.local.:8000/v1", "http://vllm.svc.cluster.local.:8000/v1"),
        ("http://[::1]:8000/v1", "http://[::1]:8000/v1"),
        ("http://bücher.example/v1", "http://bücher.example/v1"),
        ("http://xn--bcher-kva.example/v1", "http://xn--bcher-kva.example/v1"),
        ("https://models.example.org/models", "https://models.example.org/models"),
        ("http://127.0.0.1:65535/v1", "http://127.0.0.1:65535/v1"),
        (f"{AZURE}?api-version=2024-10-21", f"{AZURE}?api-version=2024-10-21"),
        (f"{AZURE}/?api-version=2024-10-21&x=a%20b", f"{AZURE}?api-version=2024-10-21&x=a%20b"),
        ("http://127.0.0.1:8000/v1?", "http://127.0.0.1:8000/v1"),
    ],
)
def test_a_base_url_is_taken_as_it_is_meant(given: str, base_url: str) -> None:
    assert check_base_url(given, SETTING) == base_url
    assert check_base_url(base_url, SETTING) == base_url
    httpx2.URL(join_path(base_url, "/chat/completions"))


@pytest.mark.parametrize(
    ("given", "words"),
    [
        ("", "it is empty. Set it to a URL such as"),
        ("  ", "it is empty. Set it to a URL such as"),
        ("localhost:8000/v1", "has no scheme. Use http://localhost:8000/v1"),
        ("127.0.0.1:8000/v1", "has no scheme. Use http://127.0.0.1:8000/v1"),
        ("api.openai.com/v1", "has no scheme"),
        ("//127.0.0.1:8000/v1", "has no scheme"),
        ("http:127.0.0.1:8000/v1", "two slashes must follow the scheme"),
        ("http:/127.0.0.1:8000/v1", "two slashes must follow the scheme"),
        ("http//127.0.0.1:8000/v1", "has no scheme"),
        ("ftp://127.0.0.1/v1", "its scheme is ftp"),
        ("ws://127.0.0.1/v1", "its scheme is ws"),
        ("unix:///run/vllm.sock", "its scheme is unix"),
        ('"http://127.0.0.1/v1"', "quotation marks"),
        ("http://127.0.0.1:99999/v1", "its port"),
        ("http://127.0.0.1:0/v1", "its port"),
        ("http://127.0.0.1:-1/v1", "its port"),
        ("http://127.0.0.1:http/v1", "its port"),
        ("http://127.0.0.1:80:80/v1", "its port"),
        ("http://[::1/v1", "its host is not valid"),
        ("http://[zz]/v1", "host|IP address"),
        ("http:///v1", "has no host"),
        ("http://:8000/v1", "has no host"),
        ("http://?x=1", "has no host"),
        ("http://256.1.1.1/v1", "not a valid IP address"),
        ("http://127.1/v1", "not a valid IP address"),
        ("http://a..b/v1", "not a valid host name"),
        ("http://-a/v1", "not a valid host name"),
        (f"http://{'a' * 64}.org/v1", "not a valid host name"),
        ("http://a,b/v1", "not a valid host name"),
        ("http://*.example.org/v1", "not a valid host name"),
        ("http://ho%20st/v1", "not a valid host name"),
        ("http://😀.example/v1", "not a valid host name"),
        ("http://127.0.0.1 :8000/v1", "white space"),
        ("http://127.0.0.1:8000/v 1", "white space"),
        ("http://127.0.0.1:8000\n/v1", "white space"),
        ("http://127.0.0.1:8000/v1\x00", "invisible character"),
        ("\ufeffhttp://127.0.0.1:8000/v1", "invisible character"),
        ("http://127.0.0.1:8000/v1\u200b", "invisible character"),
        ("http://127.0.0.1:8000/v1#top", "fragment"),
        ("http://{host}:8000/v1", "placeholder"),
        ("https://<resource>.openai.azure.com/v1", "placeholder"),
        ("https://example.org/${DEPLOYMENT}/v1", "placeholder"),
        ("http://127.0.0.1\\v1", "not allowed in a URL"),
        ("http://http://127.0.0.1/v1", "two URLs"),
        ("http://127.0.0.1:8000/v1,http://127.0.0.1:8001/v1", "two URLs"),
        ("http://127.0.0.1:8000/v1/chat/completions", "Use http://127.0.0.1:8000/v1.$"),
        ("http://127.0.0.1:8000/v1/chat/completions/", "Use http://127.0.0.1:8000/v1.$"),
        ("http://127.0.0.1:8000/v1/completions", "Use http://127.0.0.1:8000/v1.$"),
        ("http://127.0.0.1:8000/v1/responses", "Use http://127.0.0.1:8000/v1.$"),
        ("http://127.0.0.1:11434/api/chat", "ends with /api/chat"),
        (f"{AZURE}/chat/completions?api-version=1", f"Use {AZURE}.$"),
    ],
)
def test_a_url_that_no_request_can_be_sent_to_is_refused_with_its_fix(given: str, words: str) -> None:
    with pytest.raises(RecipeError, match=words) as told:
        check_base_url(given, SETTING)
    assert told.value.setting == SETTING and str(told.value).startswith(SETTING)
    assert told.value.fix
    assert told.value.exit_status == 2


@pytest.mark.parametrize(
    "given",
    [
        "http://me:s3cret@127.0.0.1/v1",
        "http://me@127.0.0.1/v1",
        "http://me:s3cret@127.0.0.1:99999/v1",
        "http://me:s3/cret@127.0.0.1/v1",
        "http://me:8000/s3cret@127.0.0.1/v1",
        "ftp://me:s3cret@127.0.0.1/v1",
        "me:s3cret@127.0.0.1/v1",
        "http://127.0.0.1/v1?key=s3cret",
        "http://127.0.0.1/v1?api-version=1&api-key=s3cret",
        "http://127.0.0.1/v1?subscription-key=s3cret",
        "http://127.0.0.1/v1?access_token=s3cret",
        "http://127.0.0.1/v1?sig=s3cret",
        "http://127.0.0.1/v1?code=s3cret",
        "http://127.0.0.1:99999/v1?Token=s3cret",
    ],
)
def test_a_secret_in_a_url_is_refused_and_not_shown(given: str) -> None:
    with pytest.raises(RecipeError, match="contains a user, a password or a key") as told:
        check_base_url(given, SETTING)
    shown = str(told.value) + mask_secrets(given)
    assert not any(part in shown for part in ("s3cret", "s3", "cret", "me:", "me@"))


@pytest.mark.parametrize(
    ("base_url", "url"),
    [
        ("http://127.0.0.1:8000/v1", "http://127.0.0.1:8000/v1/chat/completions"),
        (f"{AZURE}?api-version=1", f"{AZURE}/chat/completions?api-version=1"),
        ("http://127.0.0.1:8000", "http://127.0.0.1:8000/chat/completions"),
    ],
)
def test_a_path_is_put_before_the_query(base_url: str, url: str) -> None:
    assert join_path(base_url, "/chat/completions") == url


@pytest.mark.parametrize(
    ("base_url", "url"),
    [
        ("http://127.0.0.1:8000/v1", "http://127.0.0.1:8000/health"),
        ("http://127.0.0.1:8000/v1?tenant=a", "http://127.0.0.1:8000/health?tenant=a"),
        ("http://127.0.0.1:8000/llm", "http://127.0.0.1:8000/llm/health"),
    ],
)
def test_what_is_asked_beside_v1_stands_beside_it(base_url: str, url: str) -> None:
    assert join_path(without_v1(base_url), "/health") == url

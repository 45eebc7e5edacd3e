"""The words that servers refuse a prompt with that is too long for their model, and words that only look like them."""

from typing import Any

import httpx2
import pytest
from pydantic import SecretStr

from stillhouse.teachers.base import AttemptFailed
from stillhouse.teachers.serving.context_words import TOO_LONG
from stillhouse.teachers.serving.openai_api import Endpoint, OpenAiApi, Timeouts

TOO_LONG_SAID = [
    ("llama.cpp", "the request exceeds the available context size, try increasing it"),
    ("llama.cpp", "request (4390 tokens) exceeds the available context size (4096 tokens), try increasing it"),
    ("llama.cpp", "the request exceeds the available context size. try increasing the context size"),
    ("llama.cpp", "exceed_context_size_error"),
    ("llama.cpp", "Context size has been exceeded."),
    ("llama-cpp-python", "Requested tokens (2285) exceed context window of 2048"),
    ("ollama", "the input length exceeds the context length"),
    ("ollama", "input exceeds context length"),
    ("LM Studio", "The number of tokens to keep from the initial prompt is greater than the context length"),
    ("vLLM", "This model's maximum context length is 2048 tokens. However, your request has 8 input tokens plus 2045"),
    ("vLLM", "This model's maximum context length is 16384 tokens. However, you requested 122946 tokens"),
    ("vLLM", "The decoder prompt (length 21535) is longer than the maximum model length of 16384."),
    ("vLLM", "The prompt (total length 25938) is too long to fit into the model (context length 4096)."),
    ("vLLM", "Input prompt (2664 tokens) is too long and exceeds limit of 2048/2560"),
    ("vLLM", "Make sure that `max_model_len` is no smaller than the number of text tokens"),
    ("TGI", "Input validation error: `inputs` tokens + `max_new_tokens` must be <= 1512. Given: 1000 `inputs` tokens"),
    ("TGI", "Input validation error: `inputs` must have less than 1024 tokens. Given: 1168"),
    ("SGLang", "The input (61709 tokens) is longer than the model's context length (40960 tokens)."),
    ("SGLang", "Input length (160062 tokens) exceeds the maximum allowed length (59862 tokens)."),
    ("SGLang", "Requested token count exceeds the model's maximum context length of 4096 tokens."),
    ("TensorRT-LLM", "prompt length (5000) exceeds maximum input length (4096)"),
    ("MLC", "Request prompt has 5000 tokens in total, larger than the model input length limit 4096."),
    ("TabbyAPI", "Prompt length 5000 is greater than max_seq_len 4096"),
    ("OpenAI", "Please reduce the length of the messages or completion. context_length_exceeded"),
    ("OpenAI", "Invalid 'messages[0].content': string too long. Expected a string with maximum length 1048576"),
    ("OpenAI", "string_above_max_length"),
    ("OpenAI", "Input tokens exceed the configured limit of 272000 tokens. Your messages resulted in 300000 tokens."),
    ("OpenAI", "Your input exceeds the context window of this model. Please adjust your input and try again."),
    ("Anthropic", "prompt is too long: 205668 tokens > 200000 maximum"),
    ("Anthropic", "input length and `max_tokens` exceed context limit: 189136 + 20000 > 204648, decrease input length"),
    ("Gemini", "The input token count (1200293) exceeds the maximum number of tokens allowed (1048576)."),
    ("Vertex", "Unable to submit request because the input token count is 40000 but model only supports up to 32768"),
    ("Mistral", "Prompt contains 65673 tokens, too large for model with 32768 maximum context length"),
    (
        "Together",
        "Input validation error: `inputs` tokens + `max_new_tokens` must be <= 8193. Given: 8001 `inputs` tokens",
    ),
    (
        "Groq",
        "Request too large for model `llama`: tokens per minute Limit 6000, Requested 7000, reduce your message size",
    ),
    (
        "Cerebras",
        "Please reduce the length of the messages or completion. Current length is 42328 while limit is 40000",
    ),
    ("OpenRouter", "This endpoint's maximum context length is 32768 tokens. However, you requested about 42832 tokens"),
    ("xAI", "This model's maximum prompt length is 131072 but the request contains 136973 tokens."),
    ("Fireworks", "The prompt is too long: 10000, model maximum context length: 8192"),
    ("Cohere", "too many tokens: total number of tokens in the prompt cannot exceed 4081 - received 8411."),
    ("Bedrock", "Input is too long for requested model."),
    ("Bedrock", "expected maxLength: 4096, actual: 5000, please reformat your input and try again."),
    ("DashScope", "Range of input length should be [1, 30720]"),
    ("Moonshot", "Invalid request: Your request exceeded model token limit: 8192"),
    ("LiteLLM", "ContextWindowExceededError: The input exceeds the model's maximum context limit of 8192 tokens."),
    ("nginx", "413 Request Entity Too Large"),
]

OTHERWISE_SAID = [
    "roles must alternate between user and assistant",
    "max_tokens is too large: 100000. This model supports at most 16384 completion tokens",
    "`max_new_tokens` must be <= 1",
    "max_tokens must be less than or equal to 4096",
    "Invalid value for 'temperature': must be less than or equal to 2",
    "messages: at least one message is required",
    "prompt is a required property",
    "the request could not be parsed: unexpected token",
    "Your credit balance is too low to access the API",
    "Unsupported parameter: 'max_tokens' is not supported with this model. Use 'max_completion_tokens' instead.",
    "The response was filtered due to the prompt triggering content management policy",
    "Incorrect API key provided: ***",
    "n must be 1, which is greater than allowed",
    "input should be a valid string",
]


@pytest.mark.parametrize(("server", "words"), TOO_LONG_SAID)
def test_a_full_context_is_known_in_the_words_of_every_server(server: str, words: str) -> None:
    assert TOO_LONG.search(words), server
    assert TOO_LONG.search(words.upper()), server


@pytest.mark.parametrize(
    ("body", "reason"),
    [
        (
            {"code": 500, "message": "the request exceeds the context size", "type": "exceed_context_size_error"},
            "too-long",
        ),
        ({"message": "upstream: 400", "code": "context_length_exceeded"}, "too-long"),
        (
            {"code": 500, "message": "Context size has been exceeded.", "type": "server_error"},
            None,
        ),  # of all slots together
        ({"message": "the worker has died"}, None),
    ],
)
def test_a_server_error_is_a_full_context_only_where_its_code_says_so(body: dict[str, Any], reason: str | None) -> None:
    api = OpenAiApi(Endpoint("http://127.0.0.1:9/v1", SecretStr("key"), Timeouts()))
    response = httpx2.Response(500, json={"error": body})
    if reason is None:
        with pytest.raises(AttemptFailed):
            api._handle_error_status(response)
    else:
        assert api._handle_error_status(response).reason == reason


@pytest.mark.parametrize("words", OTHERWISE_SAID)
def test_what_has_another_reason_is_not_taken_for_a_full_context(words: str) -> None:
    assert not TOO_LONG.search(words)

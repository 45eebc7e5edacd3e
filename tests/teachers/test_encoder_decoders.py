"""An encoder-decoder as a teacher, held against transformers' own forward pass and `generate`, one row at a time."""

from __future__ import annotations

import asyncio
import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from transformers import AutoModelForSeq2SeqLM, AutoTokenizer, GenerationConfig

from stillhouse.errors import RecipeError
from stillhouse.recipe.label import LabelSettings
from stillhouse.recipe.teacher import TeacherSettings
from stillhouse.records import Message, Prompt
from stillhouse.teachers.base import Answer, AnswerSettings, Refusal, Request, open_teacher
from tests.encoder_decoders import tiny_bart, tiny_t5

pytestmark = pytest.mark.numeric

TEXTS = ["Hi", "Explain tram.", "What is a kettle, and who would use one?", "x" * 40]
START = {"t5": 0, "bart": 2}
END = {"t5": 1, "bart": 2}
MODES: dict[str, dict[str, Any]] = {
    "generate": {"sampling": {"temperature": 0.8, "top_p": 0.9, "max_tokens": 9}},
    "score": {"mode": "score"},
}
FORCED = ["A thing.", "No", "Boil it, then pour.", "y"]  # of unlike lengths, to texts of unlike lengths


@pytest.fixture(scope="module", params=["t5", "bart"])
def teacher(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder of this name."""
    make = {"t5": tiny_t5, "bart": tiny_bart}[request.param]
    return make(tmp_path_factory.mktemp("models") / request.param, layers=2, decoder_layers=3)


def ask(
    model: Path, label: dict[str, Any], texts: list[str] = TEXTS, forced: list[str] = FORCED, **options: Any
) -> list[Any]:
    settings = LabelSettings.model_validate(label)
    opened = open_teacher(TeacherSettings(kind="transformers", model=str(model), options=options), settings, seed=0)
    terms = AnswerSettings.from_label(opened.identity, settings)
    said = forced if settings.mode == "score" else [None] * len(texts)
    requests = [Request(Prompt((Message("user", text),)), 0, terms, one) for text, one in zip(texts, said, strict=True)]
    return list(asyncio.run(opened.answer(requests)))


def dense(model: Path, text: str, completion: list[int]) -> torch.Tensor:
    """log p(c_t | text, c_<t), from one forward pass a token, no batch and no padding: (time, vocabulary) float64."""
    plain = AutoModelForSeq2SeqLM.from_pretrained(model, dtype=torch.float32).eval()
    read = torch.tensor([AutoTokenizer.from_pretrained(model)(text)["input_ids"]])
    rows = []
    with torch.inference_mode():
        for time in range(len(completion)):
            before = torch.tensor([[START[model.name], *completion[:time]]])
            rows.append(plain(input_ids=read, decoder_input_ids=before).logits[0, -1].double().log_softmax(-1))
    return torch.stack(rows)


def tokens_of(answer: Answer) -> list[int]:
    assert answer.trace is not None
    ids: list[int] = answer.trace.completion_token_ids.tolist()
    return ids


@pytest.mark.parametrize("mode", MODES)
def test_top_k_labels_are_the_models_own_distribution(teacher: Path, mode: str) -> None:
    """Batched with others of other lengths, drawn with temperature and top-p: the labels know nothing of it."""
    found = ask(teacher, {**MODES[mode], "soft": {"k": 5}})
    assert len({len(tokens_of(answer)) for answer in found}) > 1 or mode == "generate"
    for text, answer in zip(TEXTS, found, strict=True):
        expected = dense(teacher, text, tokens_of(answer))
        values, _ = expected.topk(5, dim=-1)
        np.testing.assert_allclose(answer.trace.soft.logprobs, values, atol=5e-3)  # float16
        listed = expected.gather(-1, torch.from_numpy(answer.trace.soft.token_ids).long())
        np.testing.assert_allclose(answer.trace.soft.logprobs, listed, atol=5e-3)
        np.testing.assert_allclose(np.exp(answer.trace.soft.tail_logprob), 1 - values.exp().sum(-1), atol=1e-4)
        chosen = expected.gather(-1, torch.tensor(tokens_of(answer))[:, None])[:, 0]
        np.testing.assert_allclose(answer.trace.completion_logprobs, chosen, atol=1e-4)


@pytest.mark.parametrize("mode", MODES)
def test_sampled_labels_are_drawn_from_the_models_own_distribution(teacher: Path, mode: str) -> None:
    draws = 4000
    for text, answer in zip(
        TEXTS, ask(teacher, {**MODES[mode], "soft": {"encoding": "sampled", "draws": draws}}), strict=True
    ):
        p = dense(teacher, text, tokens_of(answer)).exp().numpy()
        soft = answer.trace.soft
        found = np.zeros_like(p)
        rows = np.repeat(np.arange(len(p)), np.diff(soft.offsets))
        found[rows, soft.token_ids] = soft.counts / draws
        assert np.abs((found - p) / (np.sqrt(p * (1 - p) / draws) + 1e-4)).max() < 6


@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("soft", [{"k": 5}, {"encoding": "sampled", "draws": 40}])
def test_a_request_is_answered_alike_whatever_batch_it_is_in(teacher: Path, mode: str, soft: dict[str, Any]) -> None:
    label = {**MODES[mode], "soft": soft}
    together = ask(teacher, label)
    alone = [ask(teacher, label, [text], [said])[0] for text, said in zip(TEXTS, FORCED, strict=True)]
    backwards = ask(teacher, label, TEXTS[::-1], FORCED[::-1])[::-1]
    for one, *others in zip(together, alone, backwards, strict=True):
        for other in others:
            assert (one.text, tokens_of(one)) == (other.text, tokens_of(other))
            np.testing.assert_array_equal(one.trace.soft.token_ids, other.trace.soft.token_ids)
            np.testing.assert_allclose(one.trace.completion_logprobs, other.trace.completion_logprobs, atol=2e-4)
    assert len({tuple(tokens_of(one)) for one in together}) == len(TEXTS)


def test_greedy_text_is_that_of_transformers_own_generate(teacher: Path) -> None:
    plain = AutoModelForSeq2SeqLM.from_pretrained(teacher, dtype=torch.float32).eval()
    tokenizer = AutoTokenizer.from_pretrained(teacher)
    found = ask(teacher, {"sampling": {"temperature": 0, "max_tokens": 14}, "soft": {"k": 3}})
    for text, answer in zip(TEXTS, found, strict=True):
        read = torch.tensor([tokenizer(text)["input_ids"]])
        (written,) = plain.generate(input_ids=read, max_new_tokens=14, do_sample=False, use_cache=False).tolist()
        assert written[0] == START[teacher.name]
        assert tokens_of(answer) == written[1:]
        assert answer.text == tokenizer.decode(written, skip_special_tokens=True).strip()
        assert answer.trace.soft.token_ids[:, 0].tolist() == written[1:]


def test_an_answer_ends_with_its_end_token_or_at_the_limit(teacher: Path) -> None:
    end = END[teacher.name]
    label = {"sampling": {"temperature": 3.0, "max_tokens": 60}, "soft": {"k": 3}}
    texts = [f"word {n}" for n in range(60)]
    answers = ask(teacher, label, texts, batch_size=60)
    assert {answer.finish_reason for answer in answers} == {"stop", "length"}
    for answer in answers:
        ids = tokens_of(answer)
        assert (ids[-1] == end) == (answer.finish_reason == "stop")
        assert end not in ids[:-1]
        assert answer.completion_tokens == len(ids) == len(answer.trace.soft) <= 60


def test_a_row_is_what_the_encoder_and_the_decoder_read(teacher: Path) -> None:
    """As the tokenizer makes them: T5 ends both with `</s>`, and BART begins both with `<s>` too."""
    tokenizer = AutoTokenizer.from_pretrained(teacher)
    for text, said, answer in zip(TEXTS, FORCED, ask(teacher, {"mode": "score", "soft": {"k": 3}}), strict=True):
        assert answer.trace.prompt_token_ids.tolist() == tokenizer(text)["input_ids"]
        assert answer.trace.prompt_token_ids[-1] == END[teacher.name]
        assert tokens_of(answer) == tokenizer(text_target=said)["input_ids"]
        assert tokens_of(answer)[-1] == END[teacher.name]
        assert (answer.text, answer.finish_reason) == (said, "stop")
        assert (answer.prompt_tokens, answer.completion_tokens) == (
            len(answer.trace.prompt_token_ids),
            len(tokens_of(answer)),
        )


def test_a_tokenizer_that_ends_nothing_is_helped_out(tmp_path: Path) -> None:
    """The answer's end is learnt whatever the tokenizer adds to a text."""
    folder = tiny_t5(tmp_path / "t5")
    settings = json.loads((folder / "tokenizer.json").read_text())
    (folder / "tokenizer.json").write_text(json.dumps({**settings, "post_processor": None}))
    (answer,) = ask(folder, {"mode": "score", "soft": {"k": 3}}, ["Hi"], ["No"])
    assert len(answer.trace.prompt_token_ids) == 2
    assert len(tokens_of(answer)) == 3
    assert tokens_of(answer)[-1] == 1


def test_the_models_own_generation_settings_do_not_reach_the_labels(tmp_path: Path) -> None:
    """facebook/bart-large-cnn forces a first and a last token, beams and a length."""
    folder = tiny_bart(tmp_path / "bart")
    plain = ask(folder, {"sampling": {"temperature": 0, "max_tokens": 9}, "soft": {"k": 3}})
    GenerationConfig(
        forced_bos_token_id=0,
        forced_eos_token_id=2,
        num_beams=4,
        min_length=8,
        no_repeat_ngram_size=3,
        decoder_start_token_id=2,
        eos_token_id=2,
        pad_token_id=1,
        bos_token_id=0,
    ).save_pretrained(folder)
    forced = ask(folder, {"sampling": {"temperature": 0, "max_tokens": 9}, "soft": {"k": 3}})
    assert [tokens_of(one) for one in plain] == [tokens_of(one) for one in forced]
    for text, answer in zip(TEXTS, forced, strict=True):
        best, ids = dense(folder, text, tokens_of(answer)).max(-1)
        assert ids.tolist() == tokens_of(answer)
        np.testing.assert_allclose(answer.trace.completion_logprobs, best, atol=1e-4)


@pytest.mark.parametrize(
    ("texts", "label", "refused"),
    [
        (["y" * 30, "y" * 31], {"sampling": {"max_tokens": 32}}, [False, True]),  # <s> and </s> are two more
        (["Hi", "Hi"], {"sampling": {"max_tokens": 33}}, [True, True]),
        (["y" * 30, "Hi"], {"mode": "score"}, [False, True]),
    ],
)
def test_prompt_and_answer_have_a_window_each(
    tmp_path: Path, texts: list[str], label: dict[str, Any], refused: list[bool]
) -> None:
    folder = tiny_bart(tmp_path / "bart", window=32)
    answers = ask(folder, {**label, "soft": {"k": 3}}, texts, ["z" * 30, "z" * 31])
    assert [isinstance(answer, Refusal) for answer in answers] == refused
    for answer in answers:
        if isinstance(answer, Refusal):
            assert answer.reason == "too-long"
            assert "the model allows 32 for each" in answer.detail


# ------------------------------------------------------------------------------------------------------------- bad input


def without_start(folder: Path) -> Path:
    for name in ("config.json", "generation_config.json"):
        said = json.loads((folder / name).read_text())
        said.pop("decoder_start_token_id", None)
        (folder / name).write_text(json.dumps(said))
    return folder


def opened(model: Path, kind: str = "transformers", **options: Any) -> Any:
    return open_teacher(TeacherSettings(kind=kind, model=str(model), options=options), LabelSettings(), 0)


def test_without_a_decoder_start_token_it_is_refused_before_it_is_loaded(tmp_path: Path) -> None:
    folder = without_start(tiny_t5(tmp_path / "t5"))
    with pytest.raises(RecipeError) as caught:
        opened(folder)
    assert str(caught.value) == (
        f"teacher.model is '{folder}': the model is an encoder-decoder without a decoder_start_token_id. Set "
        "decoder_start_token_id in its config.json to the id of the token that its decoder begins with (T5 uses its pad "
        "token, 0)."
    )


@pytest.mark.parametrize("file", ["config.json", "generation_config.json"])
def test_the_decoder_start_token_is_found_in_either_file(tmp_path: Path, file: str) -> None:
    folder = without_start(tiny_t5(tmp_path / "t5"))
    said = json.loads((folder / file).read_text())
    (folder / file).write_text(json.dumps({**said, "decoder_start_token_id": 5}))
    assert opened(folder)._lm.start_id == 5


def test_vllm_has_no_encoder_decoders(tmp_path: Path) -> None:
    with pytest.raises(RecipeError, match="an encoder-decoder \\(t5\\), and teacher.kind 'vllm'.*to transformers"):
        opened(tiny_t5(tmp_path / "t5"), "vllm", base_urls=["http://127.0.0.1:1/v1"])


def test_the_identity_says_that_it_is_an_encoder_decoder_and_no_request_key_knows(teacher: Path) -> None:
    identity = opened(teacher).identity
    assert identity.encoder_decoder
    assert not any("coder" in key for key in identity.shaping())

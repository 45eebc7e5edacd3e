"""The in-process teacher, held against a plain forward pass of the same model."""

import asyncio
import logging
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from transformers import AutoModelForCausalLM, GenerationConfig

from stillhouse.errors import RecipeError, TeacherUnavailable
from stillhouse.models.find import find_model
from stillhouse.models.generate import Sampling, generate
from stillhouse.models.load import decode_completion, encode_prompt, load_language_model
from stillhouse.recipe.label import LabelSettings
from stillhouse.recipe.teacher import TeacherSettings
from stillhouse.records import Message, Prompt, SampledLabels
from stillhouse.teachers.base import Answer, AnswerSettings, Refusal, Request, Teacher, open_teacher
from tests.conftest import make_tiny_model

pytestmark = pytest.mark.numeric

TEXTS = ["Hi", "Explain tram.", "What is a kettle, and who would use one in the morning?", "x" * 40]


def opened(model: Path, label: dict[str, Any], **options: Any) -> tuple[Teacher, LabelSettings]:
    settings = LabelSettings.model_validate(label)
    return open_teacher(
        TeacherSettings(kind="transformers", model=str(model), options=options), settings, seed=0
    ), settings


def ask(
    model: Path, label: dict[str, Any], texts: list[str] = TEXTS, forced: str | None = None, **options: Any
) -> list[Any]:
    teacher, settings = opened(model, label, **options)
    requests = [
        Request(Prompt((Message("user", text),)), 0, AnswerSettings.from_label(teacher.identity, settings), forced)
        for text in texts
    ]
    return list(asyncio.run(teacher.answer(requests)))


def full_logprobs(model: Path, prompt: list[int], completion: list[int]) -> torch.Tensor:
    """The model's log-probabilities at each completion position, one row at a time, no padding: (time, vocabulary)."""
    plain = AutoModelForCausalLM.from_pretrained(model, dtype=torch.float32).eval()
    with torch.inference_mode():
        logits = plain(torch.tensor([prompt + completion])).logits[0]
    return logits[len(prompt) - 1 : -1].log_softmax(-1)


def check_labels(model: Path, text: str, answer: Answer) -> None:
    trace = answer.trace
    assert trace is not None and trace.soft is not None
    tokenizer = load_language_model(model).tokenizer
    prompt, completion = trace.prompt_token_ids.tolist(), trace.completion_token_ids.tolist()
    assert prompt == encode_prompt(tokenizer, [Message("user", text)])
    expected = full_logprobs(model, prompt, completion)
    values, _ = expected.topk(trace.soft.k, dim=-1)
    np.testing.assert_allclose(trace.soft.logprobs, values, atol=5e-3)  # float16
    listed = expected.gather(-1, torch.from_numpy(trace.soft.token_ids).long())
    np.testing.assert_allclose(trace.soft.logprobs, listed, atol=5e-3)
    np.testing.assert_allclose(np.exp(trace.soft.tail_logprob), 1 - values.exp().sum(-1), atol=1e-4)
    chosen = expected[torch.arange(len(completion)), torch.tensor(completion)]
    np.testing.assert_allclose(trace.completion_logprobs, chosen, atol=1e-3)


@pytest.mark.parametrize("temperature", [0.0, 0.7])
def test_generated_labels_are_the_models_own_distribution(tiny_model: Path, temperature: float) -> None:
    """Batched with others of other lengths, drawn with temperature and top-p: the labels know nothing of it."""
    label = {"sampling": {"temperature": temperature, "top_p": 0.9, "max_tokens": 9}, "soft": {"k": 5}}
    for text, answer in zip(TEXTS, ask(tiny_model, label), strict=True):
        check_labels(tiny_model, text, answer)


def test_scored_labels_are_the_models_own_distribution(tiny_model: Path) -> None:
    label = {"mode": "score", "soft": {"k": 5}}
    for text, answer in zip(TEXTS, ask(tiny_model, label, forced="A thing."), strict=True):
        assert (answer.text, answer.finish_reason) == ("A thing.", "stop")
        assert answer.trace.completion_token_ids[-1] == 0  # the end of turn is learnt too
        check_labels(tiny_model, text, answer)


def test_greedy_text_is_the_most_likely_token_at_every_position(tiny_model: Path) -> None:
    label = {"sampling": {"temperature": 0, "max_tokens": 9}, "soft": {"k": 3}}
    for answer in ask(tiny_model, label):
        assert answer.trace.completion_token_ids.tolist() == answer.trace.soft.token_ids[:, 0].tolist()


def test_an_answer_ends_with_its_end_token_or_at_the_limit(tiny_model: Path) -> None:
    label = {"sampling": {"temperature": 2.0, "max_tokens": 60}, "soft": {"k": 3}}
    answers = ask(tiny_model, label, texts=[f"word {n}" for n in range(40)], batch_size=40)
    assert {answer.finish_reason for answer in answers} == {"stop", "length"}
    for answer in answers:
        ids = answer.trace.completion_token_ids.tolist()
        assert (ids[-1] == 0) == (answer.finish_reason == "stop")
        assert 0 not in ids[:-1]
        assert answer.completion_tokens == len(ids) == len(answer.trace.soft)


def test_the_models_own_generation_settings_do_not_reach_the_labels(tmp_path: Path) -> None:
    folder = make_tiny_model(tmp_path / "opinionated")
    own = {"repetition_penalty": 1.8, "min_new_tokens": 5, "no_repeat_ngram_size": 2, "eos_token_id": 0}
    GenerationConfig(**own).save_pretrained(folder)
    label = {"sampling": {"temperature": 0, "max_tokens": 9}, "soft": {"k": 5}}
    for text, answer in zip(TEXTS, ask(folder, label), strict=True):
        check_labels(folder, text, answer)


def test_a_request_draws_the_same_text_whatever_batch_it_is_in(tiny_model: Path) -> None:
    label = {"sampling": {"temperature": 1.0, "top_p": 0.9, "max_tokens": 9}}
    together = [answer.text for answer in ask(tiny_model, label)]
    assert together == [ask(tiny_model, label, texts=[text])[0].text for text in TEXTS]
    assert together[::-1] == [answer.text for answer in ask(tiny_model, label, texts=TEXTS[::-1])]
    assert len(set(together)) == len(together)


def test_tokens_are_drawn_as_often_as_they_are_likely(tiny_model: Path) -> None:
    """4,000 first tokens after one prompt, with temperature and top-p, against the probabilities themselves."""
    lm = load_language_model(tiny_model)
    prompt = encode_prompt(lm.tokenizer, [Message("user", "Hi")])
    drawn = 4000
    tokens = generate(lm, [prompt] * drawn, max_tokens=1, sampling=Sampling(0.7, 0.8, range(drawn)))
    seen = np.bincount([token for (token,) in tokens], minlength=lm.model.config.vocab_size) / drawn
    with torch.inference_mode():
        likely = (lm.model(torch.tensor([prompt])).logits[0, -1].double() / 0.7).softmax(-1)
    ordered, ids = likely.sort(descending=True)
    kept = ordered.cumsum(-1) - ordered < 0.8  # up to the token that passes top_p
    expected = torch.zeros_like(likely).scatter(0, ids[kept], ordered[kept] / ordered[kept].sum()).numpy()
    assert set(np.flatnonzero(seen)) <= set(np.flatnonzero(expected))
    spread = np.sqrt(expected * (1 - expected) / drawn)
    assert np.all(np.abs(seen - expected) <= 5 * spread + 1e-9)


def test_text_alone_carries_no_trace(tiny_model: Path) -> None:
    assert all(answer.trace is None for answer in ask(tiny_model, {"sampling": {"max_tokens": 4}}))


def test_a_prompt_past_the_window_is_refused_and_the_others_go_on(tiny_model: Path) -> None:
    label = {"sampling": {"temperature": 0, "max_tokens": 8}, "soft": {"k": 3}}
    first, long, last = ask(tiny_model, label, texts=["Hi", "y" * 400, "Explain tram."])
    assert isinstance(long, Refusal)
    assert long.reason == "too-long"
    assert "the model's context window of 256" in long.detail
    check_labels(tiny_model, "Hi", first)
    check_labels(tiny_model, "Explain tram.", last)


def test_a_tokenizer_without_a_chat_template_takes_plain_text_and_says_so(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    folder = make_tiny_model(tmp_path / "base", template=False)
    with caplog.at_level(logging.WARNING):
        (answer,) = ask(folder, {"sampling": {"temperature": 0, "max_tokens": 4}, "soft": {"k": 3}}, texts=["Hi"])
    assert "no chat template" in caplog.text
    check_labels(folder, "Hi", answer)


def test_the_identity_is_taken_from_content(tiny_model: Path, tmp_path: Path) -> None:
    import shutil

    moved = shutil.copytree(tiny_model, tmp_path / "moved")
    retrained = make_tiny_model(tmp_path / "retrained", seed=1)
    retokenized = make_tiny_model(tmp_path / "retokenized", merges=2)
    identity, same, other, odd = (
        opened(folder, {})[0].identity for folder in (tiny_model, moved, retrained, retokenized)
    )
    assert identity.shaping() == same.shaping()
    assert identity.shaping() != other.shaping()
    assert identity.tokenizer_sha256 == other.tokenizer_sha256 != odd.tokenizer_sha256
    assert identity.vocabulary_size == 260


def test_opening_loads_no_model(tiny_model: Path) -> None:
    teacher, _ = opened(tiny_model, {})
    assert teacher.identity.kind == "transformers"
    assert "_lm" not in vars(teacher)


@pytest.mark.parametrize(
    ("model", "options", "words"),
    [
        ("no/such/model", {}, "teacher.model is 'no/such/model': no folder has this path"),
        (
            "",
            {},
            "teacher.model is '': no model is named",
        ),
    ],
)
def test_a_model_that_is_not_there(model: str, options: dict[str, Any], words: str) -> None:
    with pytest.raises((TeacherUnavailable, RecipeError), match="teacher.model") as caught:
        open_teacher(TeacherSettings(kind="transformers", model=model, options=options), LabelSettings(), 0)
    assert words in str(caught.value)


def test_a_folder_that_is_no_model(tmp_path: Path) -> None:
    with pytest.raises(TeacherUnavailable, match=r"the folder has no config\.json"):
        opened(tmp_path, {})


def test_an_unknown_option_names_the_right_one(tiny_model: Path) -> None:
    with pytest.raises(RecipeError, match=r"teacher\.options\.batchsize.*Did you mean 'batch_size'"):
        opened(tiny_model, {}, batchsize=3)


def test_an_unknown_kind_names_the_right_one() -> None:
    with pytest.raises(RecipeError, match="Did you mean 'transformers'"):
        open_teacher(TeacherSettings(kind="transformer", model="x"), LabelSettings(), 0)


@pytest.mark.slow
def test_the_demo_teacher_knows_the_capital_of_france(demo_teacher: Path) -> None:
    label = {"sampling": {"temperature": 0, "max_tokens": 12}, "soft": {"k": 8}}
    (answer,) = ask(demo_teacher, label, texts=["What is the capital of France?"])
    assert answer.text.startswith("The capital of France is Paris")
    assert answer.finish_reason == "stop"
    check_labels(demo_teacher, "What is the capital of France?", answer)


# -------------------------------------------------------------------------------------------------------- sampled labels

SAMPLED = {"encoding": "sampled", "draws": 40}


def shares(labels: SampledLabels, vocabulary: int) -> np.ndarray:
    """count / draws at each position: (time, vocabulary)."""
    dense = np.zeros((len(labels), vocabulary))
    rows = np.repeat(np.arange(len(labels)), np.diff(labels.offsets))
    dense[rows, labels.token_ids] = labels.counts / labels.draws[rows]
    return dense


@pytest.mark.parametrize("forced", [None, "A thing."])
def test_sampled_labels_are_drawn_from_the_models_own_distribution(tiny_model: Path, forced: str | None) -> None:
    """Whatever temperature and top-p the text is drawn with; held against the standard error of so many draws."""
    draws = 4000
    mode = {"mode": "score"} if forced else {"sampling": {"temperature": 0.5, "top_p": 0.5, "max_tokens": 5}}
    answers = ask(tiny_model, {**mode, "soft": {"encoding": "sampled", "draws": draws}}, forced=forced)
    for answer in answers:
        trace = answer.trace
        assert len(trace.soft) == len(trace.completion_token_ids) and set(trace.soft.draws.tolist()) == {draws}
        prompt, completion = trace.prompt_token_ids.tolist(), trace.completion_token_ids.tolist()
        p = full_logprobs(tiny_model, prompt, completion).exp().double().numpy()
        error = np.sqrt(p * (1 - p) / draws) + 1e-4
        assert np.abs((shares(trace.soft, p.shape[1]) - p) / error).max() < 6


@pytest.mark.parametrize("forced", [None, "A thing."])
def test_sampled_labels_are_the_same_whatever_batch_a_request_is_in(tiny_model: Path, forced: str | None) -> None:
    mode = {"mode": "score"} if forced else {"sampling": {"temperature": 1.0, "max_tokens": 9}}
    label = {**mode, "soft": SAMPLED}
    together = [answer.trace.soft for answer in ask(tiny_model, label, forced=forced)]
    alone = [ask(tiny_model, label, texts=[text], forced=forced)[0].trace.soft for text in TEXTS]
    backwards = [answer.trace.soft for answer in ask(tiny_model, label, texts=TEXTS[::-1], forced=forced)][::-1]
    for other in (alone, backwards):
        for mine, theirs in zip(together, other, strict=True):
            for name in ("token_ids", "counts", "offsets"):
                np.testing.assert_array_equal(getattr(mine, name), getattr(theirs, name))


def test_positions_and_requests_have_draws_of_their_own(tiny_model: Path) -> None:
    label = {"mode": "score", "soft": {"encoding": "sampled", "draws": 500}}
    one, other = (answer.trace.soft for answer in ask(tiny_model, label, texts=["Hi", "Hi "], forced="aaaa"))
    assert one.counts.tolist() != other.counts.tolist()
    assert not np.array_equal(one.counts[: one.offsets[1]], one.counts[one.offsets[1] : one.offsets[2]])


def test_the_text_is_the_same_whichever_labels_are_kept_with_it(tiny_model: Path) -> None:
    """Drawing labels takes nothing from the generator that the text is drawn with; the request's key differs, though."""
    greedy = {"sampling": {"temperature": 0, "max_tokens": 9}}
    texts = [
        [answer.text for answer in ask(tiny_model, {**greedy, "soft": soft})] for soft in (None, SAMPLED, {"k": 4})
    ]
    assert texts[0] == texts[1] == texts[2]


# ------------------------------------------------------------------------------------------- a turn that is to go on


OPEN = (Message("system", "Be brief."), Message("user", "Name a tree."), Message("assistant", "An"))


def test_an_assistants_last_turn_is_left_open(tiny_model: Path) -> None:
    tokenizer = load_language_model(tiny_model).tokenizer
    text = tokenizer.decode(encode_prompt(tokenizer, OPEN))
    assert text == "<|system|>Be brief.<|end|><|user|>Name a tree.<|end|><|assistant|>An"
    closed = tokenizer.decode(encode_prompt(tokenizer, OPEN[:2]))
    assert closed == "<|system|>Be brief.<|end|><|user|>Name a tree.<|end|><|assistant|>"


def test_a_space_that_an_answer_goes_on_with_is_part_of_it(tiny_model: Path) -> None:
    lm = load_language_model(tiny_model)
    ids = [*lm.tokenizer(" oak. ")["input_ids"], *lm.end_ids]
    assert decode_completion(lm, ids, Prompt(OPEN)) == " oak."
    assert decode_completion(lm, ids, Prompt(OPEN[:2])) == decode_completion(lm, ids) == "oak."


@pytest.mark.parametrize("forced", [None, " oak."])
def test_an_answer_goes_on_from_the_open_turn(tiny_model: Path, forced: str | None) -> None:
    """Its labels are the model's own distribution behind that turn."""
    label = {"mode": "score" if forced else "generate", "soft": {"k": 5}, "sampling": {"max_tokens": 9}}
    teacher, settings = opened(tiny_model, label)
    request = Request(Prompt(OPEN), 0, AnswerSettings.from_label(teacher.identity, settings), forced)
    (answer,) = asyncio.run(teacher.answer([request]))
    assert isinstance(answer, Answer)
    assert answer.trace is not None and answer.trace.soft is not None
    prompt, completion = answer.trace.prompt_token_ids.tolist(), answer.trace.completion_token_ids.tolist()
    assert load_language_model(tiny_model).tokenizer.decode(prompt).endswith("<|assistant|>An")
    values, _ = full_logprobs(tiny_model, prompt, completion).topk(5, dim=-1)
    np.testing.assert_allclose(answer.trace.soft.logprobs, values, atol=5e-3)


def test_only_a_chat_template_makes_a_difference_to_keys(tiny_model: Path, tmp_path: Path) -> None:
    plain = make_tiny_model(tmp_path / "plain", template=False)
    assert opened(tiny_model, {})[0].identity.continuing == "continue_final_message"
    assert opened(plain, {})[0].identity.continuing == ""


@pytest.mark.parametrize("name", ["config.json", "tokenizer_config.json", "generation_config.json"])
@pytest.mark.parametrize(
    "content", ["{half", "[" * 5000, "[]", '{"a": "\xe9"}'], ids=["half", "deep", "a list", "Latin-1"]
)
def test_a_models_file_that_is_no_json_is_named(tmp_path: Path, name: str, content: str) -> None:
    folder = make_tiny_model(tmp_path / "model")
    (folder / name).write_bytes(content.encode("latin-1"))
    (folder / "chat_template.jinja").unlink(missing_ok=True)
    asked = {"config.json": "vocabulary_size", "tokenizer_config.json": "chat_template_sha256"}
    with pytest.raises(
        TeacherUnavailable, match=rf"model/{name} (cannot be read as JSON|does not contain a JSON object)"
    ):
        getattr(find_model(str(folder)), asked.get(name, "decoder_start_id"))

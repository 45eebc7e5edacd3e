"""Tokens drawn from a mixture of teacher and student, against whole forward passes of both without padding or cache."""

from pathlib import Path
from typing import Any

import pytest
import torch
import transformers
from torch import Tensor

from stillhouse.models.generate import GenerationHooks, Sampling, generate
from stillhouse.models.layout import completion_logits, make_token_batch
from stillhouse.models.load import LanguageModel, load_language_model
from stillhouse.models.mixture import TeacherMixture
from tests.conftest import make_tiny_model
from tests.encoder_decoders import tiny_t5

PROMPTS = [[5, 9, 11, 30, 7], [12], [40, 41, 42]]
MOST = 6


class Recorder(transformers.LogitsProcessor):
    """Keeps the scores that it is called with."""

    def __init__(self) -> None:
        self.scores: list[Tensor] = []

    def __call__(self, input_ids: Tensor, scores: Tensor) -> Tensor:
        self.scores.append(scores.clone())
        return scores


def made(kind: str, folder: Path, seed: int) -> LanguageModel:
    if kind == "t5, deeper decoder":
        return load_language_model(tiny_t5(folder, layers=1, decoder_layers=3, seed=seed))
    return load_language_model(make_tiny_model(folder, layers=2 + seed, seed=seed))


def dense(lm: LanguageModel, prompt: list[int], written: list[int]) -> Tensor:
    """Probabilities at each written token: (written, vocabulary)."""
    batch: Any = make_token_batch([prompt], [written], lm.pad_id, lm.start_id)
    with torch.inference_mode():
        return completion_logits(lm.model, batch).softmax(dim=-1)


@pytest.mark.parametrize("kind", ["causal", "t5, deeper decoder"])
def test_every_token_is_drawn_from_the_mixture(kind: str, tmp_path: Path) -> None:
    student, teacher = made(kind, tmp_path / "student", 0), made(kind, tmp_path / "teacher", 1)
    recorder = Recorder()
    mixture = TeacherMixture(teacher, PROMPTS, share=0.3)
    written = generate(
        student,
        PROMPTS,
        max_tokens=MOST,
        sampling=Sampling(1.0, 1.0, seeds=[1, 2, 3]),
        hooks=GenerationHooks(processors=[mixture, recorder]),
    )
    assert max(map(len, written)) > 2
    for row, (prompt, ids) in enumerate(zip(PROMPTS, written, strict=True)):
        expected = 0.3 * dense(teacher, prompt, ids) + 0.7 * dense(student, prompt, ids)
        found = torch.stack([recorder.scores[step][row] for step in range(len(ids))]).exp()
        torch.testing.assert_close(found, expected, rtol=1e-3, atol=1e-5)


def test_vocabularies_may_have_other_numbers_of_padding_rows(tmp_path: Path) -> None:
    student, teacher = made("causal", tmp_path / "student", 0), made("causal", tmp_path / "teacher", 1)
    known = len(student.tokenizer)
    for larger, smaller in ((teacher, student), (student, teacher)):
        larger.model.resize_token_embeddings(known + 8)
        smaller.model.resize_token_embeddings(known)
        scores = torch.zeros(1, student.model.config.vocab_size)
        mixed = TeacherMixture(teacher, [[5, 6]], share=0.5)(torch.tensor([[5, 6]]), scores)
        assert mixed.shape == scores.shape
        torch.testing.assert_close(mixed.exp().sum(), torch.tensor(1.0))

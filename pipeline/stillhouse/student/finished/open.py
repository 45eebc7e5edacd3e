"""Open a finished student and ask it.

student = open_student("quickstart")
student.answer("What is a river?")                        # one answer
student.answer(["What is a river?", "What is a lamp?"])   # a list of answers
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, overload

from stillhouse.errors import StudentMissing
from stillhouse.records import RECIPE_FILE, Message
from stillhouse.student.finished.folder import CARD, StudentCard, Variant, read_card

if TYPE_CHECKING:
    from transformers import PreTrainedModel, PreTrainedTokenizerBase

    from stillhouse.models.load import LanguageModel

Conversation = str | Sequence[Mapping[str, str]]  # one user message, or messages with `role` and `content`
_MAX_TOKENS = 128


@dataclass(frozen=True)
class Student:
    """A finished student. Its weights are loaded when they are first needed."""

    folder: Path
    card: StudentCard
    device: str = "auto"

    @property
    def model(self) -> PreTrainedModel:
        """The model, as transformers loads it."""
        return self._lm.model

    @property
    def tokenizer(self) -> PreTrainedTokenizerBase:
        """The tokenizer."""
        return self._lm.tokenizer

    @overload
    def answer(  # type: ignore[overload-overlap]  # a string is a sequence of strings too
        self,
        prompts: Conversation,
        *,
        max_tokens: int | None = None,
        temperature: float = 0.0,
        top_p: float = 1.0,
        seed: int = 0,
    ) -> str: ...

    @overload
    def answer(
        self,
        prompts: Sequence[Conversation],
        *,
        max_tokens: int | None = None,
        temperature: float = 0.0,
        top_p: float = 1.0,
        seed: int = 0,
    ) -> list[str]: ...

    def answer(
        self,
        prompts: Conversation | Sequence[Conversation],
        *,
        max_tokens: int | None = None,
        temperature: float = 0.0,
        top_p: float = 1.0,
        seed: int = 0,
    ) -> str | list[str]:
        """Answer one conversation, or each of a list of conversations.

        Args:
            prompts: a conversation or a list of conversations. A conversation is a string (one user message) or a list of
                messages, mappings with `role` and `content`.
            max_tokens: maximum tokens per answer; None: `label.sampling.max_tokens` of the student's recipe (128 if its
                folder has no recipe).
            temperature: 0 takes the most likely token at every step.
            top_p: the share of the distribution that tokens are drawn from, 0 < top_p <= 1.
            seed: seed of the draws. The answer to a list's n-th conversation is drawn with seed + n, counted from 0, and
                does not depend on the others.

        Returns:
            One answer as a string for one conversation; a list with one answer per conversation for a list.

        Raises:
            TemplateRefused: the student's chat template cannot render a conversation.
        """
        from stillhouse.models.generate import Sampling, generate
        from stillhouse.models.load import decode_completion, encode_prompt

        is_single = _is_conversation(prompts)
        conversations = [prompts] if is_single else prompts
        encoded = [encode_prompt(self._lm.tokenizer, _messages(one)) for one in conversations]  # type: ignore[arg-type]
        if not encoded:
            return []
        sampling = Sampling(temperature, top_p, [seed + n for n in range(len(encoded))]) if temperature > 0 else None
        generated = generate(self._lm, encoded, max_tokens=max_tokens or self._max_tokens, sampling=sampling)
        answers = [decode_completion(self._lm, answer) for answer in generated]
        return answers[0] if is_single else answers

    @cached_property
    def _lm(self) -> LanguageModel:
        from stillhouse.models.load import load_language_model

        return load_language_model(self.folder, device=self.device)

    @cached_property
    def _max_tokens(self) -> int:
        from stillhouse.recipe.load import load_recipe

        file = self.folder / RECIPE_FILE
        return load_recipe(file).label.sampling.max_tokens if file.is_file() else _MAX_TOKENS


def find_student(name: str | Path, variant: Variant, root: str | Path) -> Path:
    """Return the folder of a finished student.

    Args:
        name: a recipe's name, or a student's own folder.
        variant: which of the recipe's students.
        root: where students are (`students` in the recipe).

    Raises:
        StudentMissing: neither folder has a finished student.
    """
    own, of_recipe = Path(name), Path(root) / name / variant
    for folder in (of_recipe, own, own / variant):
        if (folder / CARD).is_file():
            return folder
    raise StudentMissing(f"there is no finished student in {of_recipe} or {own}", fix="run `stillhouse distill` first")


def open_student(
    name: str | Path,
    variant: Variant = "white-box",
    *,
    root: str | Path = "data/students",
    device: str = "auto",
) -> Student:
    """Open a finished student by its recipe's name or its own folder.

    Raises:
        StudentMissing: no finished student exists.
    """
    folder = find_student(name, variant, root)
    card = read_card(folder)
    if card is None:
        raise StudentMissing(f"{folder / CARD} cannot be read", fix="train the student again")
    return Student(folder, card, device)


def _is_conversation(prompts: Conversation | Sequence[Conversation]) -> bool:
    """Whether this is one conversation, and not a list of them. An empty list is a list of no conversations."""
    return isinstance(prompts, str) or (len(prompts) > 0 and isinstance(prompts[0], Mapping))


def _messages(conversation: Conversation) -> list[Message]:
    if isinstance(conversation, str):
        return [Message("user", conversation)]
    return [Message(one["role"], one["content"]) for one in conversation]  # type: ignore[arg-type]

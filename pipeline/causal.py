"""The one place that runs causal language models with torch: loading, aligned logits, generation.

Teacher, student and evaluation all read the logits of a completion through `completion_logits`, so a label and the
student's answer to it stand at the same position by construction:

    tokens   p0 p1 p2 c0 c1 c2        the logits at p2 are the distribution of c0
    kept           ^  ^  ^
"""

from __future__ import annotations

import inspect
import logging
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
import transformers
from torch import Tensor
from transformers import AutoModelForCausalLM, AutoTokenizer, PreTrainedModel, PreTrainedTokenizerBase

from pipeline.errors import RecipeError
from pipeline.records import Message

log = logging.getLogger(__name__)

DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16}


IGNORED = -100  # the label of a token that is not learnt


@dataclass(frozen=True)
class TokenBatch:
    """Prompts with their completions, right-padded. `labels` repeats the completion tokens and is -100 elsewhere."""

    input_ids: Tensor  # (batch, time) int64
    attention_mask: Tensor  # (batch, time) int64
    labels: Tensor  # (batch, time) int64

    @property
    def completion_mask(self) -> Tensor:
        """True at the positions whose logits foretell a completion token, one step before it: (batch, time - 1) bool."""
        return self.labels[:, 1:] != IGNORED

    @property
    def targets(self) -> Tensor:
        """The completion tokens in the order of `completion_logits`: (completion tokens,) int64."""
        return self.labels[self.labels != IGNORED]

    def to(self, device: torch.device) -> TokenBatch:
        return TokenBatch(self.input_ids.to(device), self.attention_mask.to(device), self.labels.to(device))


def token_batch(prompts: Sequence[Sequence[int]], completions: Sequence[Sequence[int]], pad_id: int) -> TokenBatch:
    """Lay token ids out for one forward pass; every prompt and every completion has at least one token."""
    lengths = [len(prompt) + len(completion) for prompt, completion in zip(prompts, completions, strict=True)]
    shape = (len(prompts), max(lengths))
    input_ids, labels = torch.full(shape, pad_id), torch.full(shape, IGNORED)
    attention_mask = torch.zeros(shape, dtype=torch.int64)
    for row, (prompt, completion) in enumerate(zip(prompts, completions, strict=True)):
        input_ids[row, : lengths[row]] = torch.tensor([*prompt, *completion])
        labels[row, len(prompt) : lengths[row]] = torch.tensor([*completion])
        attention_mask[row, : lengths[row]] = 1
    return TokenBatch(input_ids, attention_mask, labels)


def completion_logits(model: torch.nn.Module, batch: TokenBatch) -> Tensor:
    """The logits that foretell each completion token, rows after one another: (completion tokens, vocabulary) float32.

    The output layer runs only from the first completion position of the batch on, where the model can do so: over a
    vocabulary of 50,000 it costs as much as many transformer layers.
    """
    mask = batch.completion_mask
    first = int(mask.any(dim=0).int().argmax())
    kept = torch.arange(first, mask.shape[1], device=mask.device)
    arguments: dict[str, Any] = {
        "input_ids": batch.input_ids,
        "attention_mask": batch.attention_mask,
        "use_cache": False,
    }
    if _takes_logits_to_keep(model):
        logits = model(**arguments, logits_to_keep=kept).logits  # (batch, kept, vocabulary)
    else:
        logits = model(**arguments).logits[:, kept]
    selected: Tensor = logits[mask[:, kept]]
    return selected.float()


def _takes_logits_to_keep(model: torch.nn.Module) -> bool:
    return "logits_to_keep" in inspect.signature(model.forward).parameters


# --------------------------------------------------------------------------------------------------------------- loading


@dataclass(frozen=True)
class CausalModel:
    """A loaded model with its tokenizer."""

    model: PreTrainedModel
    tokenizer: PreTrainedTokenizerBase

    @property
    def device(self) -> torch.device:
        return torch.device(self.model.device)

    @property
    def window(self) -> int:
        """Tokens of prompt and completion that the model takes."""
        return int(getattr(self.model.config, "max_position_embeddings", 0) or 2**31)

    @property
    def pad_id(self) -> int:
        """What fills up a batch; never attended to, so any token does where the tokenizer has none for it."""
        pad = self.tokenizer.pad_token_id
        return int(pad if pad is not None else self.end_ids[0])

    @property
    def end_ids(self) -> list[int]:
        """Tokens that end an answer; the first is the one that training texts end with."""
        configured = self.model.generation_config.eos_token_id if self.model.generation_config else None
        listed = configured if isinstance(configured, list) else [configured]
        own = self.tokenizer.eos_token_id
        ends = dict.fromkeys(token for token in [own, *listed] if token is not None)
        return [int(token) for token in ends]


def load_causal_model(
    folder: Path, *, dtype: str = "float32", device: str = "auto", trust_remote_code: bool = False
) -> CausalModel:
    """Load a model and its tokenizer for inference, on the accelerator if there is one."""
    model = load_weights(folder, dtype=DTYPES[dtype], trust_remote_code=trust_remote_code)
    model.eval()
    model.generation_config = token_ids_alone(model.generation_config)
    tokenizer = load_tokenizer(folder, trust_remote_code=trust_remote_code)
    return CausalModel(model.to(choose_device(device)), tokenizer)


def load_weights(folder: Path, *, dtype: torch.dtype | str, trust_remote_code: bool = False) -> PreTrainedModel:
    """A model as it is, on the CPU: out of safetensors alone, and of its own code nothing unless that is trusted.

    Raises:
        RecipeError: weights are missing, which the library would make up at random.
    """
    quiet_transformers()
    model, found = AutoModelForCausalLM.from_pretrained(
        folder, dtype=dtype, use_safetensors=True, trust_remote_code=trust_remote_code, output_loading_info=True
    )
    if missing := sorted(found["missing_keys"]):
        raise RecipeError(
            f"the model in {folder} is no whole causal language model, it lacks {', '.join(missing[:3])}: name one that "
            "holds a language model with its head, such as one saved as ...ForCausalLM"
        )
    return model


def load_tokenizer(folder: Path, *, trust_remote_code: bool = False) -> PreTrainedTokenizerBase:
    """A model's tokenizer alone."""
    quiet_transformers()
    return AutoTokenizer.from_pretrained(folder, trust_remote_code=trust_remote_code)


def token_ids_alone(settings: transformers.GenerationConfig | None) -> transformers.GenerationConfig:
    """How a model ends its answers, without how it samples, which transformers would fill unset settings of ours from."""
    names = ("bos_token_id", "eos_token_id", "pad_token_id")
    return transformers.GenerationConfig(**{name: getattr(settings, name, None) for name in names})


def choose_device(device: str) -> torch.device:
    """`auto` is the accelerator if there is one, else the CPU."""
    if device != "auto":
        return torch.device(device)
    accelerator = torch.accelerator.current_accelerator() if torch.accelerator.is_available() else None
    return accelerator or torch.device("cpu")


def quiet_transformers() -> None:
    """No progress bars of the library's own: they would break ours, and fill logs."""
    transformers.utils.logging.disable_progress_bar()
    transformers.utils.logging.set_verbosity_error()


# -------------------------------------------------------------------------------------------------------- text and tokens


def encode_prompt(tokenizer: PreTrainedTokenizerBase, messages: Sequence[Message]) -> list[int]:
    """The token ids up to where the answer begins.

    A tokenizer without a chat template belongs to a model that was never taught to chat: the messages' text is then
    taken as it is.
    """
    if tokenizer.chat_template is None:
        text = "\n".join(message.content for message in messages)
        return _ids(tokenizer(text)["input_ids"])
    turns = [message.as_dict() for message in messages]
    encoded = tokenizer.apply_chat_template(turns, add_generation_prompt=True, tokenize=True, return_dict=True)
    return _ids(encoded["input_ids"])


def encode_completion(causal: CausalModel, text: str) -> list[int]:
    """The token ids of an answer, with the token that ends it."""
    return completion_ids(causal.tokenizer, text, causal.end_ids[:1])


def completion_ids(tokenizer: PreTrainedTokenizerBase, text: str, end: Sequence[int]) -> list[int]:
    """The token ids of a text, and those that end it."""
    return [*_ids(tokenizer(text, add_special_tokens=False)["input_ids"]), *end]


def decode_completion(causal: CausalModel, token_ids: Sequence[int]) -> str:
    """The text of an answer, without its end token."""
    return str(causal.tokenizer.decode(list(token_ids), skip_special_tokens=True)).strip()


def _ids(encoded: Any) -> list[int]:
    return [int(token) for token in encoded]


@dataclass(frozen=True)
class GenerationHooks:
    """What looks on while a model generates; see `labels_from_logits.py` for the one that records soft labels."""

    processors: Sequence[transformers.LogitsProcessor] = ()
    criteria: Sequence[transformers.StoppingCriteria] = ()


@dataclass(frozen=True)
class Sampling:
    """How tokens are drawn. Each prompt has a seed of its own, so its answer does not depend on the batch it is in."""

    temperature: float  # > 0
    top_p: float
    seeds: Sequence[int]  # one a prompt


def generate(
    causal: CausalModel,
    prompts: Sequence[Sequence[int]],
    *,
    max_tokens: int,
    sampling: Sampling | None = None,
    hooks: GenerationHooks = GenerationHooks(),
) -> list[list[int]]:
    """Continue each prompt; every answer ends with its end token unless it ran into `max_tokens`.

    Only the settings given here shape the answers; what the model's own generation_config would add (a repetition
    penalty, top-k) was dropped when it was loaded. Without `sampling` the most likely token is taken.
    """
    width = max(len(prompt) for prompt in prompts)
    input_ids = torch.full((len(prompts), width), causal.pad_id)
    attention_mask = torch.zeros_like(input_ids)
    for row, prompt in enumerate(prompts):  # left-padded, so that all answers begin in the same column
        input_ids[row, width - len(prompt) :] = torch.tensor([*prompt])
        attention_mask[row, width - len(prompt) :] = 1
    settings = transformers.GenerationConfig(
        max_new_tokens=max_tokens, do_sample=False, eos_token_id=causal.end_ids, pad_token_id=causal.pad_id
    )
    processors = [*hooks.processors, *([_Draw(sampling)] if sampling else [])]
    with torch.inference_mode():
        output = causal.model.generate(
            input_ids=input_ids.to(causal.device),
            attention_mask=attention_mask.to(causal.device),
            generation_config=settings,
            logits_processor=transformers.LogitsProcessorList(processors),
            stopping_criteria=transformers.StoppingCriteriaList(hooks.criteria),
        )
    return [_until_end(row[width:].tolist(), causal.end_ids) for row in output]


class _Draw(transformers.LogitsProcessor):
    """Draws each row's next token and leaves it the only one possible.

    By inverse transform from one uniform number a row: the library's own draw takes one for every token of the vocabulary
    (a fifth of the time, measured on a CPU) from one generator for the whole batch.
    """

    def __init__(self, sampling: Sampling) -> None:
        self._generators = [torch.Generator().manual_seed(seed) for seed in sampling.seeds]
        self._warpers = transformers.LogitsProcessorList([transformers.TemperatureLogitsWarper(sampling.temperature)])
        if sampling.top_p < 1:
            self._warpers.append(transformers.TopPLogitsWarper(sampling.top_p))

    def __call__(self, input_ids: Tensor, scores: Tensor) -> Tensor:
        precise = torch.float32 if scores.device.type == "mps" else torch.float64  # which that device lacks
        reached = self._warpers(input_ids, scores.float()).softmax(dim=-1).cumsum(dim=-1, dtype=precise)
        uniform = [torch.rand(1, generator=generator, dtype=torch.float64) for generator in self._generators]
        wanted = torch.stack(uniform).to(reached) * reached[:, -1:]  # (batch, 1), below the sum
        token = torch.searchsorted(reached, wanted, right=True).clamp(max=scores.shape[-1] - 1)
        return torch.full_like(scores, -torch.inf).scatter(-1, token, 0.0)


def _until_end(tokens: list[int], ends: Sequence[int]) -> list[int]:
    """Cut what was padded on after the first end token."""
    stop = next((place for place, token in enumerate(tokens) if token in ends), len(tokens) - 1)
    return tokens[: stop + 1]

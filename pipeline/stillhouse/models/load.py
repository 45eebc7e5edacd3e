"""A language model with its tokenizer, causal or encoder-decoder: loading, and converting text to tokens.

layout.py computes its logits, head.py its hidden states, generate.py its answers.
"""

from __future__ import annotations

import logging
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import jinja2
import torch
import transformers
from transformers import (
    AutoConfig,
    AutoModelForCausalLM,
    AutoModelForSeq2SeqLM,
    AutoTokenizer,
    PretrainedConfig,
    PreTrainedModel,
    PreTrainedTokenizerBase,
)

from stillhouse.errors import RecipeError, TemplateRefused
from stillhouse.models.checks import DECODER_START_FIX, NO_DECODER_START
from stillhouse.records import Message, Prompt

log = logging.getLogger(__name__)

_MAX_MESSAGE = 300  # maximum characters of a chat template's own error message
DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16}


# --------------------------------------------------------------------------------------------------------------- loading


@dataclass(frozen=True)
class LanguageModel:
    """A loaded model with its tokenizer."""

    model: PreTrainedModel
    tokenizer: PreTrainedTokenizerBase
    start_id: int | None = None  # an encoder-decoder's decoder start token; None for a causal model

    @property
    def device(self) -> torch.device:
        return torch.device(self.model.device)

    @property
    def is_encoder_decoder(self) -> bool:
        return self.start_id is not None

    @property
    def window(self) -> int:
        """Maximum tokens: of prompt and completion together for a causal model, of each for an encoder-decoder."""
        return int(getattr(self.model.config, "max_position_embeddings", 0) or 2**31)

    def fits(self, prompt: int, completion: int) -> bool:
        """Whether a prompt and a completion of these lengths fit into the window."""
        return (max(prompt, completion) if self.is_encoder_decoder else prompt + completion) <= self.window

    @property
    def pad_id(self) -> int:
        """The padding token; it is masked, so any token works if the tokenizer has none."""
        pad = self.tokenizer.pad_token_id
        return int(pad if pad is not None else self.end_ids[0])

    @property
    def end_ids(self) -> list[int]:
        """The tokens that end an answer; training texts end with the first."""
        configured = self.model.generation_config.eos_token_id if self.model.generation_config else None
        listed = configured if isinstance(configured, list) else [configured]
        own = self.tokenizer.eos_token_id
        ends = dict.fromkeys(token for token in [own, *listed] if token is not None)
        return [int(token) for token in ends]


def load_language_model(
    folder: Path, *, dtype: str = "float32", device: str = "auto", trust_remote_code: bool = False
) -> LanguageModel:
    """Load a model and its tokenizer for inference, on the accelerator if one exists.

    Raises:
        RecipeError: weights are missing, or an encoder-decoder has no decoder start token.
    """
    model = load_weights(folder, dtype=DTYPES[dtype], trust_remote_code=trust_remote_code)
    model.eval()
    model.generation_config = token_ids_alone(model.generation_config)
    tokenizer = load_tokenizer(folder, trust_remote_code=trust_remote_code)
    return LanguageModel(model.to(choose_device(device)), tokenizer, decoder_start_token_id(model))


def load_weights(folder: Path, *, dtype: torch.dtype | str, trust_remote_code: bool = False) -> PreTrainedModel:
    """Load a model onto the CPU, from safetensors only; its own code runs only if it is trusted.

    Raises:
        RecipeError: weights are missing, which the library would initialise at random.
    """
    quiet_transformers()
    config = AutoConfig.from_pretrained(folder, trust_remote_code=trust_remote_code)
    model, found = auto_class(config).from_pretrained(
        folder,
        config=config,
        dtype=dtype,
        use_safetensors=True,
        trust_remote_code=trust_remote_code,
        output_loading_info=True,
    )
    if missing := sorted(found["missing_keys"]):
        kind, saved_as = (
            ("encoder-decoder", "ForConditionalGeneration") if config.is_encoder_decoder else ("causal", "ForCausalLM")
        )
        raise RecipeError(
            f"the model in {folder} is not a complete {kind} language model: it lacks {', '.join(missing[:3])}",
            fix=f"use a language model with its head, such as one saved as ...{saved_as}",
        )
    return model


def auto_class(config: PretrainedConfig) -> Any:
    """Return the auto class that loads a language model of this kind, or builds one from its config."""
    return AutoModelForSeq2SeqLM if config.is_encoder_decoder else AutoModelForCausalLM


def decoder_start_token_id(model: PreTrainedModel) -> int | None:
    """Return an encoder-decoder's decoder start token; None for a causal model.

    Raises:
        RecipeError: neither generation_config nor config sets it.
    """
    if not model.config.is_encoder_decoder:
        return None
    for settings in (model.generation_config, model.config):
        start = getattr(settings, "decoder_start_token_id", None)
        if start is not None:
            return int(start[0] if isinstance(start, list) else start)
    raise RecipeError(f"{NO_DECODER_START}: {model.config.name_or_path}", fix=DECODER_START_FIX)


def load_tokenizer(folder: Path, *, trust_remote_code: bool = False) -> PreTrainedTokenizerBase:
    """Load a model's tokenizer only."""
    quiet_transformers()
    return AutoTokenizer.from_pretrained(folder, trust_remote_code=trust_remote_code)


def token_ids_alone(settings: transformers.GenerationConfig | None) -> transformers.GenerationConfig:
    """Keep a model's special token ids and drop its sampling settings, which transformers would use for our unset ones."""
    names = ("bos_token_id", "eos_token_id", "pad_token_id", "decoder_start_token_id")
    return transformers.GenerationConfig(**{name: getattr(settings, name, None) for name in names})


def choose_device(device: str) -> torch.device:
    """Return the named device; `auto` is the accelerator if one exists, else the CPU."""
    if device != "auto":
        return torch.device(device)
    accelerator = torch.accelerator.current_accelerator() if torch.accelerator.is_available() else None
    return accelerator or torch.device("cpu")


def quiet_transformers() -> None:
    """Disable the library's own progress bars and warnings: they would break ours and fill logs."""
    transformers.utils.logging.disable_progress_bar()
    transformers.utils.logging.set_verbosity_error()


# -------------------------------------------------------------------------------------------------------- text and tokens


def encode_prompt(tokenizer: PreTrainedTokenizerBase, messages: Sequence[Message]) -> list[int]:
    """Return the token ids of a prompt, up to where the answer begins.

    A final assistant turn is left open, and the answer continues it. A tokenizer without a chat template belongs to a model
    that was never trained to chat: the messages' text is then used as is.

    Raises:
        TemplateRefused: the chat template cannot render the messages.
    """
    if tokenizer.chat_template is None:
        text = "\n".join(message.content for message in messages)
        return _ids(tokenizer(text)["input_ids"])
    turns = [message.as_dict() for message in messages]
    continues = turns[-1]["role"] == "assistant"
    opened = {"continue_final_message": True} if continues else {"add_generation_prompt": True}
    with convert_template_errors():
        encoded = tokenizer.apply_chat_template(turns, tokenize=True, return_dict=True, **opened)
    if not (token_ids := _ids(encoded["input_ids"])):
        raise TemplateRefused("it renders no text")
    return token_ids


@contextmanager
def convert_template_errors() -> Iterator[None]:
    """Convert any exception of a chat template into one error.

    A template is a program by the model's author: it refuses by `raise_exception`, and it fails on inputs that its author
    did not expect (a missing field, an index, a sum of text and number).

    Raises:
        TemplateRefused: the template raised an exception; the message quotes it.
    """
    try:
        yield
    except jinja2.TemplateSyntaxError as error:
        raise TemplateRefused(f"it does not parse: line {error.lineno}: {error.message}") from None
    except jinja2.TemplateError as error:
        raise TemplateRefused(_in_a_line(error) or type(error).__name__) from None
    except (
        ArithmeticError,
        AssertionError,
        AttributeError,
        LookupError,
        RecursionError,
        TypeError,
        ValueError,
    ) as error:
        raise TemplateRefused(f"{type(error).__name__}: {_in_a_line(error)}") from None


def _in_a_line(error: Exception) -> str:
    return " ".join(str(error).split())[:_MAX_MESSAGE]


def encode_completion(lm: LanguageModel, text: str, *, ended: bool = True) -> list[int]:
    """Return the token ids of an answer, with its end token unless the text was cut off.

    What an encoder-decoder's tokenizer adds around a text belongs to its answers too: BART's begin with `<s>`. What it
    appends belongs to the end: T5's and BART's `</s>`, mBART's `</s>` and the language.

    Args:
        lm: the model whose tokens they are.
        text: the answer.
        ended: whether the text is complete (`records.is_complete`).
    """
    if not lm.is_encoder_decoder:
        return completion_ids(lm.tokenizer, text, lm.end_ids[:1] if ended else [])
    encoded = lm.tokenizer(text_target=text, return_special_tokens_mask=True)
    ids = _ids(encoded["input_ids"])
    if not ended:
        of_text = [index for index, added in enumerate(encoded["special_tokens_mask"]) if not added]
        return ids[: of_text[-1] + 1] if of_text else []
    return ids if ids and ids[-1] in lm.end_ids else [*ids, *lm.end_ids[:1]]


def completion_ids(tokenizer: PreTrainedTokenizerBase, text: str, end: Sequence[int]) -> list[int]:
    """Return the token ids of a text, followed by `end`."""
    return [*_ids(tokenizer(text, add_special_tokens=False)["input_ids"]), *end]


def decode_completion(lm: LanguageModel, token_ids: Sequence[int], prompt: Prompt | None = None) -> str:
    """Return the text of an answer without its end token; its leading space is kept if `prompt` ends in an open turn."""
    text = str(lm.tokenizer.decode(list(token_ids), skip_special_tokens=True))
    return text.strip() if prompt is None else prompt.trimmed(text)


def _ids(encoded: Any) -> list[int]:
    return [int(token) for token in encoded]

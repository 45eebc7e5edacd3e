"""LoRA (Hu et al., arXiv 2106.09685), by peft: adapters learn, and the student's own weights stay as they are.

    adapted = add_adapters(model, settings, seed=0)      # what is trained, and what a checkpoint holds
    merged(start, settings, weights, folder)             # the finished student, an ordinary model

Before the first step an adapter adds nothing, so the loss is then that of the whole student.
"""

from __future__ import annotations

import re
import warnings
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path

import torch
from peft import LoraConfig, PeftModel, get_peft_model
from peft.tuners.tuners_utils import BaseTunerLayer
from torch import Tensor, nn
from transformers import PreTrainedModel
from transformers.pytorch_utils import Conv1D

from stillhouse.errors import RecipeError
from stillhouse.models.load import LanguageModel
from stillhouse.recipe.load import Recipe
from stillhouse.recipe.student import LoraSettings, StudentSettings
from stillhouse.student.start.start_config import without_weights

_LINEAR = (nn.Linear, Conv1D)  # GPT-2's layers are of the second kind, with their weights on the side
ALL = "all-linear"


def add_adapters(
    model: PreTrainedModel, settings: LoraSettings, *, seed: int, checkpointing: bool = False
) -> PeftModel:
    """Put adapters into the model's layers and freeze everything else, on the instance.

    Args:
        model: the student.
        settings: of the recipe.
        seed: draws the adapters' first half; the other is 0.
        checkpointing: activations are not kept: then what goes into a layer must want gradients, though no weight does.

    Raises:
        RecipeError: `student.lora.target_modules` names what is not there, or what an adapter cannot be put into.
    """
    _check_targets(model, settings.target_modules)
    targets = settings.target_modules
    config = LoraConfig(
        task_type="SEQ_2_SEQ_LM" if model.config.is_encoder_decoder else "CAUSAL_LM",
        r=settings.r,
        lora_alpha=settings.alpha,  # type: ignore[arg-type]  # any number will do
        lora_dropout=settings.dropout,
        target_modules=targets if isinstance(targets, str) else [*targets],
        fan_in_fan_out=any(isinstance(module, Conv1D) for module in model.modules()),
    )
    torch.manual_seed(seed)
    try:
        with warnings.catch_warnings():  # peft asks the model by names that transformers is about to drop
            warnings.filterwarnings("ignore", "`is_gradient_checkpointing` is deprecated", FutureWarning)
            warnings.filterwarnings("ignore", "Model has `tie_word_embeddings=True`", UserWarning)  # refused below
            adapted = get_peft_model(model, config)
    except (ValueError, TypeError, NotImplementedError) as error:
        raise RecipeError(f"{_setting(targets)}: {error} {_there_are(model)}") from None
    _refuse_tied(adapted, model, targets)
    if checkpointing:
        adapted.enable_input_require_grads()
    return adapted


def check_adapters(recipe: Recipe, student: StudentSettings) -> None:
    """Refuse adapters that the student has no place for, by its config alone.

    Raises:
        RecipeError: as `add_adapters` does.
        TeacherUnavailable: the model that it starts from is not there.
    """
    if student.lora is not None:
        add_adapters(without_weights(recipe, student), student.lora, seed=0)


def trainable(model: nn.Module) -> int:
    """How many weights of a model learn."""
    return sum(parameter.numel() for parameter in model.parameters() if parameter.requires_grad)


def merged(start: LanguageModel, settings: LoraSettings, weights: Mapping[str, Tensor], adapter: Path) -> LanguageModel:
    """The student with what it has learnt added to its own weights; `start` is used up.

    Args:
        start: the untrained student, read anew: whatever held the adapted one in parts has nothing to do with it.
        settings: with which it was trained.
        weights: of the adapted student, all of them.
        adapter: a folder for the adapter on its own.
    """
    adapted = add_adapters(start.model, settings, seed=0)
    adapted.load_state_dict(weights)
    adapted.save_pretrained(str(adapter))
    (adapter / "README.md").unlink(missing_ok=True)  # peft's form, not filled in
    with warnings.catch_warnings():  # of a T5 with a head of its own, whose config says that it is shared
        warnings.filterwarnings("ignore", "Input and output embeddings are no longer tied", UserWarning)
        return replace(start, model=adapted.merge_and_unload())


def _check_targets(model: PreTrainedModel, targets: str | tuple[str, ...]) -> None:
    names = [name for name, _ in model.named_modules()]
    if isinstance(targets, str):
        try:
            found = targets == ALL or any(re.fullmatch(targets, name) for name in names)
        except re.error as error:
            raise RecipeError(
                f"{_setting(targets)}: it is no regular expression: {error}. {_there_are(model)}"
            ) from None
        missing = [] if found else [targets]
    else:
        missing = [target for target in targets if not any(f".{name}".endswith(f".{target}") for name in names)]
    if missing or not targets:
        as_list = ""
        if isinstance(targets, str) and any(f".{name}".endswith(f".{targets}") for name in names):
            as_list = f" A text is a pattern of a module's whole name: give a list, [{targets}]."
        raise RecipeError(
            f"{_setting(targets)}: the student has no module {', '.join(missing)}.{as_list} {_there_are(model)}"
        )


def _refuse_tied(adapted: PeftModel, model: PreTrainedModel, targets: str | tuple[str, ...]) -> None:
    """An adapter on one of two layers that share their weights could not be merged: the other would get it too."""
    ends = (model.get_input_embeddings(), model.get_output_embeddings())
    if model.config.get_text_config().tie_word_embeddings and any(isinstance(end, BaseTunerLayer) for end in ends):
        raise RecipeError(
            f"{_setting(targets)}: the student's embedding and its output layer share their weights, so an adapter on one "
            f"of them could not be merged. Set it to '{ALL}', or to layers between them"
        )


def _setting(targets: str | tuple[str, ...]) -> str:
    return f"student.lora.target_modules is {targets if isinstance(targets, str) else [*targets]!r}"


def _there_are(model: PreTrainedModel) -> str:
    head = model.get_output_embeddings()
    names = {
        name.rpartition(".")[2]
        for name, module in model.named_modules()
        if isinstance(module, _LINEAR) and module is not head
    }
    return f"It has {', '.join(sorted(names))}; '{ALL}' stands for all of them"

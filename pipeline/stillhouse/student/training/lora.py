"""LoRA (Hu et al., arXiv 2106.09685), by peft: only adapters are trained, the student's own weights are frozen.

    adapted = add_adapters(model, settings, seed=0)      # this is trained, and saved in checkpoints
    merge_adapters(start, settings, weights, folder)             # the finished student, an ordinary model

A new adapter adds nothing, so the initial loss is that of the student without adapters.
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
from stillhouse.recipe.recipe import Recipe
from stillhouse.recipe.student import LoraSettings, StudentSettings
from stillhouse.student.start.start_config import meta_model

_LINEAR = (nn.Linear, Conv1D)  # GPT-2 uses Conv1D, whose weights are transposed
ALL = "all-linear"


def add_adapters(
    model: PreTrainedModel,
    settings: LoraSettings,
    *,
    seed: int,
    checkpointing: bool = False,
    setting: str = "student.lora.target_modules",
) -> PeftModel:
    """Put adapters into the model's layers and freeze everything else, in place.

    Args:
        model: the student.
        settings: the recipe's LoRA settings.
        seed: seed of the adapters' first matrix; the second starts at 0.
        checkpointing: whether activations are recomputed: layer inputs must then require grad even if no weight does.
        setting: path of `target_modules` in the recipe, for errors.

    Raises:
        RecipeError: `student.lora.target_modules` names missing modules, or modules that cannot have an adapter.
    """
    _check_targets(model, settings.target_modules, setting)
    targets = settings.target_modules
    config = LoraConfig(
        task_type="SEQ_2_SEQ_LM" if model.config.is_encoder_decoder else "CAUSAL_LM",
        r=settings.r,
        lora_alpha=settings.alpha,  # type: ignore[arg-type]  # peft accepts any number
        lora_dropout=settings.dropout,
        target_modules=targets if isinstance(targets, str) else [*targets],
        fan_in_fan_out=any(isinstance(module, Conv1D) for module in model.modules()),
    )
    torch.manual_seed(seed)
    try:
        with warnings.catch_warnings():  # peft uses names that transformers is about to remove
            warnings.filterwarnings("ignore", "`is_gradient_checkpointing` is deprecated", FutureWarning)
            warnings.filterwarnings("ignore", "Model has `tie_word_embeddings=True`", UserWarning)  # refused below
            adapted = get_peft_model(model, config)
    except (ValueError, TypeError, NotImplementedError) as error:
        raise RecipeError(str(error).rstrip("."), setting=setting, value=_value(targets), fix=_choices(model)) from None
    _refuse_tied(adapted, model, targets, setting)
    if checkpointing:
        adapted.enable_input_require_grads()
    return adapted


def check_adapters(recipe: Recipe, student: StudentSettings) -> None:
    """Refuse adapters that do not fit the student, from its config alone.

    Raises:
        RecipeError: `student.lora.target_modules` names missing modules, or modules that cannot have an adapter.
        TeacherUnavailable: the model that the student starts from cannot be found.
    """
    if student.lora is not None:
        setting = student.setting("lora.target_modules")
        add_adapters(meta_model(recipe, student), student.lora, seed=0, setting=setting)


def count_trainable(model: nn.Module) -> int:
    """Return the number of a model's trainable parameters."""
    return sum(parameter.numel() for parameter in model.parameters() if parameter.requires_grad)


def merge_adapters(
    start: LanguageModel, settings: LoraSettings, weights: Mapping[str, Tensor], adapter: Path
) -> LanguageModel:
    """Return the student with its adapters merged into its own weights; `start` is modified.

    Args:
        start: the untrained student, loaded again: it shares no sharding or wrapper with the trained one.
        settings: the LoRA settings of the training.
        weights: all weights of the adapted student.
        adapter: folder to which the adapter alone is saved.
    """
    adapted = add_adapters(start.model, settings, seed=0)
    adapted.load_state_dict(weights)
    adapted.save_pretrained(str(adapter))
    (adapter / "README.md").unlink(missing_ok=True)  # peft's template, not filled in
    with warnings.catch_warnings():  # for a T5 with an untied head whose config says that it is tied
        warnings.filterwarnings("ignore", "Input and output embeddings are no longer tied", UserWarning)
        return replace(start, model=adapted.merge_and_unload())


def _check_targets(model: PreTrainedModel, targets: str | tuple[str, ...], setting: str) -> None:
    names = [name for name, _ in model.named_modules()]
    if isinstance(targets, str):
        try:
            found = targets == ALL or any(re.fullmatch(targets, name) for name in names)
        except re.error as error:
            raise RecipeError(
                f"it is not a regular expression: {error}", setting=setting, value=targets, fix=_choices(model)
            ) from None
        missing = [] if found else [targets]
    else:
        missing = [target for target in targets if not any(f".{name}".endswith(f".{target}") for name in names)]
    if missing or not targets:
        as_list = ""
        if isinstance(targets, str) and any(f".{name}".endswith(f".{targets}") for name in names):
            as_list = f" (a string is a pattern for a module's whole name; for its last part use a list, [{targets}])"
        raise RecipeError(
            f"the student has no module {', '.join(missing)}{as_list}",
            setting=setting,
            value=_value(targets),
            fix=_choices(model),
        )


def _refuse_tied(adapted: PeftModel, model: PreTrainedModel, targets: str | tuple[str, ...], setting: str) -> None:
    """Refuse an adapter on a layer with tied weights: merging would change the other layer too."""
    ends = (model.get_input_embeddings(), model.get_output_embeddings())
    if model.config.get_text_config().tie_word_embeddings and any(isinstance(end, BaseTunerLayer) for end in ends):
        raise RecipeError(
            "the student's embedding and its output layer share their weights, so an adapter on one of them could not be "
            "merged",
            setting=setting,
            value=_value(targets),
            fix=f"set it to '{ALL}', or to layers between them",
        )


def _value(targets: str | tuple[str, ...]) -> str | list[str]:
    return targets if isinstance(targets, str) else [*targets]


def _choices(model: PreTrainedModel) -> str:
    head = model.get_output_embeddings()
    names = {
        name.rpartition(".")[2]
        for name, module in model.named_modules()
        if isinstance(module, _LINEAR) and module is not head
    }
    return f"choose from its modules {', '.join(sorted(names))}; '{ALL}' means all of them"

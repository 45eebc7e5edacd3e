"""Refuse a model that cannot be loaded, or only with code that is not trusted; its files alone are read."""

from __future__ import annotations

from stillhouse.errors import RecipeError
from stillhouse.models.files import SAFETENSORS, ModelFiles

_PICKLES = ("*.bin", "*.pt", "*.pth")
NO_DECODER_START = "the model is an encoder-decoder without a decoder_start_token_id"
DECODER_START_FIX = (
    "set decoder_start_token_id in its config.json to the id of the token that its decoder begins with (T5 uses its pad "
    "token, 0)"
)


def refuse_pickles(files: ModelFiles, setting: str) -> None:
    """Refuse a folder without safetensors: other weights are not read, because unpickling runs arbitrary code.

    Raises:
        RecipeError: the folder has no safetensors file.
    """
    if any(files.folder.glob(SAFETENSORS)):
        return
    pickles = sorted(file.name for pattern in _PICKLES for file in files.folder.glob(pattern))
    found = f"its weights are a pickle ({', '.join(pickles[:3])})" if pickles else "it has no safetensors weights"
    raise RecipeError(
        f"{found}, and only safetensors are loaded, because a pickle can run any code",
        setting=setting,
        value=files.name,
        fix="if you trust the model, convert it once with "
        "AutoModelForCausalLM.from_pretrained(model).save_pretrained(folder), save its tokenizer there too, and use "
        "that folder",
    )


def refuse_untrusted_code(files: ModelFiles, setting: str, trust: str, *, trusted: bool) -> None:
    """Refuse a model that only its own code can load, unless that code is trusted.

    Args:
        files: the model's files.
        setting: the setting that names the model.
        trust: the setting that lets its code run.
        trusted: the value of that setting.

    Raises:
        RecipeError: the code is needed and not trusted.
    """
    if not trusted and (needed := files.needed_code):
        raise RecipeError(
            f"only code that comes with the model can load it ({', '.join(needed)}), and {trust} is false",
            setting=setting,
            value=files.name,
            fix=f"read that code, then set {trust} to true, or use a model that transformers has built in",
        )


def refuse_without_decoder_start(files: ModelFiles, setting: str) -> None:
    """Refuse an encoder-decoder without a decoder start token.

    Raises:
        RecipeError: neither its generation_config.json nor its config.json sets decoder_start_token_id.
    """
    if files.is_encoder_decoder and files.decoder_start_id is None:
        raise RecipeError(NO_DECODER_START, setting=setting, value=files.name, fix=DECODER_START_FIX)

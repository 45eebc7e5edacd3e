"""Where an encoder-decoder student starts: copied layers of both stacks, fresh configs, and what is refused in words."""

from __future__ import annotations

import json
import re
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn
from transformers import (
    AutoModelForSeq2SeqLM,
    AutoTokenizer,
    BartConfig,
    BartModel,
    FSMTConfig,
    FSMTForConditionalGeneration,
    SwitchTransformersConfig,
    T5Config,
    T5EncoderModel,
    T5Model,
)

from stillhouse.errors import RecipeError
from stillhouse.models.generate import generate
from stillhouse.models.load import load_language_model
from stillhouse.recipe.recipe import Recipe
from stillhouse.stages.checks import check_labels, check_student
from stillhouse.student.start.start_config import check_start, meta_model
from stillhouse.student.training.frozen import freeze
from tests.encoder_decoders import tiny_bart, tiny_t5
from tests.student.starts import Make, made, refused, start
from tests.t5_small import CONFIG, t5_small, t5_tokenizer

__all__ = ["start"]  # a fixture

Folder = Callable[..., Path]
T5_SHAPE = ("num_layers", "num_decoder_layers", "d_model", "d_kv", "d_ff", "num_heads")
BART_SHAPE = (
    "encoder_layers",
    "decoder_layers",
    "encoder_attention_heads",
    "decoder_attention_heads",
    "decoder_ffn_dim",
)


def gated_t5(folder: Path, **config: Any) -> Path:
    """As T5 1.1 has it: a gated feed-forward, and logits that are not scaled."""
    return tiny_t5(folder, feed_forward_proj="gated-gelu", tie_word_embeddings=False, **config)


def t5_with_a_head(folder: Path, **config: Any) -> Path:
    """As T5 1.1 lies on a hub: its head is not its embedding, whatever its config says."""
    model = AutoModelForSeq2SeqLM.from_pretrained(gated_t5(folder, **config))
    model.lm_head.weight = nn.Parameter(model.shared.weight.flip(0))
    model.save_pretrained(folder)
    return folder


FAMILIES: list[Folder] = [tiny_t5, gated_t5, t5_with_a_head, tiny_bart]


@pytest.fixture(scope="module")
def t5(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tiny_t5(tmp_path_factory.mktemp("models") / "t5", layers=4, decoder_layers=3)


@pytest.fixture(scope="module")
def bart(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tiny_bart(tmp_path_factory.mktemp("models") / "bart", layers=4, decoder_layers=3)


def logits(model: Any) -> torch.Tensor:
    """Of some tokens: (batch, time, vocabulary)."""
    given, answer = torch.arange(3, 15).reshape(2, 6), torch.arange(20, 30).reshape(2, 5)
    with torch.no_grad():
        return model.eval()(input_ids=given, decoder_input_ids=answer, use_cache=False).logits


def layers_of(model: Any) -> tuple[Any, Any]:
    """The encoder's and the decoder's, each with the list's name."""
    encoder, decoder = model.get_encoder(), model.get_decoder()
    name = "block" if hasattr(encoder, "block") else "layers"
    return (encoder, name), (decoder, name)


def by_hand(folder: Path, encoder: list[int], decoder: list[int]) -> Any:
    """The teacher with its other layers taken out; T5's table of positions is handed to whichever layer is first then."""
    model = AutoModelForSeq2SeqLM.from_pretrained(folder)
    for (stack, name), kept in zip(layers_of(model), (encoder, decoder), strict=True):
        layers = getattr(stack, name)
        if name == "block":
            old, new = (layers[place].layer[0].SelfAttention for place in (0, kept[0]))
            new.relative_attention_bias, new.has_relative_attention_bias = old.relative_attention_bias, True
        setattr(stack, name, nn.ModuleList([layers[place] for place in kept]))
    return model


# --------------------------------------------------------------------------------------------------- layers of the teacher


@pytest.mark.parametrize("family", FAMILIES)
def test_all_layers_are_the_teacher(start: Make, tmp_path: Path, family: Folder) -> None:
    teacher = family(tmp_path / "teacher", layers=3, decoder_layers=2)
    model = made(start({"from": "teacher", "layers": {"encoder": 3}}, teacher), tmp_path / "made")
    assert torch.equal(logits(model), logits(AutoModelForSeq2SeqLM.from_pretrained(teacher)))


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize(
    ("layers", "encoder", "decoder"),
    [
        (2, [0, 3], [0, 2]),
        (1, [0], [0]),
        ([1, 2], [1, 2], [1, 2]),
        ({"encoder": [1, 3], "decoder": [2]}, [1, 3], [2]),
        ({"encoder": 3, "decoder": [1, 2]}, [0, 2, 3], [1, 2]),
        ({"decoder": 1}, [0, 1, 2, 3], [0]),
    ],
    ids=str,
)
def test_some_layers_are_the_teacher_without_the_others(
    start: Make, tmp_path: Path, family: Folder, layers: Any, encoder: list[int], decoder: list[int]
) -> None:
    teacher = family(tmp_path / "teacher", layers=4, decoder_layers=3)
    model = made(start({"from": "teacher", "layers": layers}, teacher), tmp_path / "made")
    expected = by_hand(teacher, encoder, decoder)
    assert torch.equal(logits(model), logits(expected))
    assert not torch.allclose(logits(expected), logits(AutoModelForSeq2SeqLM.from_pretrained(teacher)), atol=1e-3)
    counts = ("encoder_layers", "decoder_layers") if family is tiny_bart else ("num_layers", "num_decoder_layers")
    saved = json.loads((tmp_path / "made/config.json").read_text())
    assert [saved[name] for name in counts] == [len(encoder), len(decoder)]
    assert [len(getattr(stack, name)) for stack, name in layers_of(model)] == [len(encoder), len(decoder)]
    lm = load_language_model(tmp_path / "made")
    assert lm.start_id == load_language_model(teacher).start_id
    assert all(generate(lm, [[5, 6], [7]], max_tokens=3))


@pytest.mark.parametrize(
    ("layers", "words"),
    [
        (
            4,
            "student.init.layers is 4: the teacher's decoder has only 3 layers. Set it to a number from 1 to 3, or set the "
            "layers of each stack",
        ),
        ([0, 3], "student.init.layers is [0, 3]: the teacher's decoder has no layer 3. Use layers from 0 to 2."),
        (
            {"encoder": 5},
            "student.init.layers.encoder is 5: the teacher's encoder has only 4 layers. Set it to a number from 1 to 4.",
        ),
        (
            {"decoder": [0, 7]},
            "student.init.layers.decoder is [0, 7]: the teacher's decoder has no layer 7. Use layers from 0 to 2.",
        ),
    ],
    ids=str,
)
def test_layers_that_a_stack_lacks(start: Make, t5: Path, bart: Path, layers: Any, words: str) -> None:
    for teacher in (t5, bart):
        assert words in refused(start({"from": "teacher", "layers": layers}, teacher))


def test_a_causal_teacher_has_one_stack(start: Make) -> None:
    message = refused(start({"from": "teacher", "layers": {"encoder": 2, "decoder": 1}}))
    assert "student.init.layers: it names layers of the encoder and decoder" in message
    assert "is a causal model with one stack of 4 layers. Set it to a number such as 2" in message


def test_layers_that_are_of_two_sorts_are_not_copied(start: Make, t5: Path, tmp_path: Path) -> None:
    """Every other feed-forward of a Switch Transformer is a mixture of experts."""
    config = {key: value for key, value in json.loads((t5 / "config.json").read_text()).items() if key != "model_type"}
    SwitchTransformersConfig(
        **config | {"architectures": None}, num_experts=2, num_sparse_encoder_layers=2, num_sparse_decoder_layers=1
    ).save_pretrained(tmp_path / "switch")
    AutoTokenizer.from_pretrained(t5).save_pretrained(tmp_path / "switch")
    message = refused(start({"from": "teacher", "layers": [1]}, tmp_path / "switch"))
    assert "layers of a switch_transformers model cannot be copied one by one" in message


# ----------------------------------------------------------------------------------------------------------------- configs


@pytest.mark.parametrize(
    ("config", "shape"),
    [
        ({"num_layers": 2}, (2, 3, 16, 8, 32, 2)),
        ({"num_decoder_layers": 1, "d_model": 10}, (4, 1, 10, 8, 32, 2)),
        ({"num_heads": 3, "d_ff": 7}, (4, 3, 16, 8, 7, 3)),
        ({"num_hidden_layers": 1, "hidden_size": 12, "d_kv": 5}, (1, 1, 12, 5, 32, 2)),
        ({"num_hidden_layers": 6, "num_decoder_layers": 2}, (6, 2, 16, 8, 32, 2)),
    ],
)
def test_a_narrower_t5(start: Make, t5: Path, tmp_path: Path, config: dict[str, Any], shape: tuple[int, ...]) -> None:
    """What is not named stays the teacher's: the width of a head does not follow the model's."""
    recipe = start({"config": config}, t5)
    check_start(recipe, recipe.student)
    model = made(recipe, tmp_path / "made")
    assert tuple(getattr(model.config, name) for name in T5_SHAPE) == shape
    assert (len(model.encoder.block), len(model.decoder.block)) == shape[:2]
    assert tuple(model.encoder.block[0].layer[0].SelfAttention.q.weight.shape) == (shape[3] * shape[5], shape[2])
    assert model.config.vocab_size == json.loads((t5 / "config.json").read_text())["vocab_size"]
    assert logits(model).isfinite().all()


def test_a_narrower_bart(start: Make, bart: Path, tmp_path: Path) -> None:
    fewer = {"num_hidden_layers": 1, "d_model": 8, "num_attention_heads": 4, "decoder_ffn_dim": 5}
    model = made(start({"config": fewer}, bart), tmp_path / "made")
    assert tuple(getattr(model.config, name) for name in BART_SHAPE) == (1, 1, 4, 4, 5)
    own = {"encoder_layers": 1, "encoder_attention_heads": 1}  # of one stack alone
    model = made(start({"config": own}, bart), tmp_path / "own")
    assert tuple(getattr(model.config, name) for name in BART_SHAPE) == (1, 3, 1, 2, 32)


def test_what_follows_from_the_feed_forward_follows(start: Make, t5: Path, tmp_path: Path) -> None:
    """A T5's config holds what it works out from `feed_forward_proj` too; the teacher's must not stay."""
    model = made(start({"config": {"feed_forward_proj": "gated-gelu", "d_ff": 24}}, t5), tmp_path / "made")
    assert (model.config.dense_act_fn, model.config.is_gated_act) == ("gelu_new", True)
    assert hasattr(model.encoder.block[0].layer[1].DenseReluDense, "wi_1")
    assert model.config.scale_decoder_outputs
    gated = gated_t5(tmp_path / "gated")
    assert not made(start({"config": {"d_ff": 8}}, gated), tmp_path / "again").config.scale_decoder_outputs
    model = made(start({"config": {"feed_forward_proj": "relu"}}, gated), tmp_path / "relu")
    assert not hasattr(model.encoder.block[0].layer[1].DenseReluDense, "wi_1")


@pytest.mark.parametrize("kind", ["t5", "bart", "mt5", "umt5"])
@pytest.mark.parametrize("family", ["t5", "bart"])
def test_a_config_of_its_own_begins_and_ends_as_the_teacher_does(
    start: Make, request: pytest.FixtureRequest, tmp_path: Path, kind: str, family: str
) -> None:
    teacher: Path = request.getfixturevalue(family)
    t5_shape = {"d_model": 8, "d_kv": 4, "d_ff": 8, "num_layers": 1, "num_heads": 2}
    bart_shape = {
        "d_model": 8,
        "num_hidden_layers": 1,
        "num_attention_heads": 2,
        "encoder_ffn_dim": 8,
        "decoder_ffn_dim": 8,
    }
    recipe = start({"config": {"model_type": kind, **(bart_shape if kind == "bart" else t5_shape)}}, teacher)
    check_student(recipe)
    model = made(recipe, tmp_path / "made")
    theirs = json.loads((teacher / "config.json").read_text())
    for name in ("decoder_start_token_id", "pad_token_id", "eos_token_id"):
        assert getattr(model.config, name) == getattr(model.generation_config, name) == theirs[name]
    lm, own = load_language_model(tmp_path / "made"), load_language_model(teacher)
    assert (lm.start_id, lm.pad_id, lm.end_ids) == (own.start_id, own.pad_id, own.end_ids)
    assert generate(lm, [[5, 6]], max_tokens=4)


@pytest.mark.parametrize(
    "init", [{"config": {"d_ff": 8}}, {"from": "teacher", "layers": 1}, {"model": "teacher"}], ids=str
)
@pytest.mark.parametrize("where", ["config.json", "generation_config.json"])
def test_a_decoder_start_is_taken_over_from_either_file(
    start: Make, t5: Path, tmp_path: Path, init: dict[str, Any], where: str
) -> None:
    teacher = without_start(t5, tmp_path / "teacher")
    file = teacher / where
    file.write_text(json.dumps(json.loads(file.read_text()) | {"decoder_start_token_id": 7}))
    recipe = start({key: str(teacher) if key == "model" else value for key, value in init.items()}, teacher)
    made(recipe, tmp_path / "made")
    assert load_language_model(tmp_path / "made").start_id == 7


def test_tokens_that_a_config_says_are_those_of_the_student(start: Make, t5: Path, tmp_path: Path) -> None:
    """Also where the teacher has a generation_config.json, whose other settings are kept."""
    teacher = without_start(t5, tmp_path / "teacher")
    file = teacher / "generation_config.json"
    file.write_text(json.dumps(json.loads(file.read_text()) | {"num_beams": 4}))
    recipe = start({"config": {"d_ff": 8, "decoder_start_token_id": 3, "eos_token_id": 4}}, teacher)
    check_start(recipe, recipe.student)
    made(recipe, tmp_path / "made")
    saved = json.loads((tmp_path / "made/generation_config.json").read_text())
    assert (saved["decoder_start_token_id"], saved["eos_token_id"], saved["num_beams"]) == (3, 4, 4)
    assert json.loads((tmp_path / "made/config.json").read_text())["decoder_start_token_id"] == 3


@pytest.mark.parametrize(
    ("config", "words"),
    [
        ({"n_layers": 2}, "config.n_layers: a t5 config has no such key. Did you mean 'num_layers'?"),
        ({"num_layers": 0}, "config.num_layers is 0: it must be a whole number, 1 or more"),
        ({"num_decoder_layers": 1.5}, "config.num_decoder_layers is 1.5: it must be a whole number, 1 or more"),
        ({"d_kv": "8"}, "config.d_kv is '8': it must be a whole number, 1 or more"),
        ({"d_model": True}, "config.d_model is true: it must be a whole number, 1 or more"),
        ({"model_type": "t5", "num_heads": -2}, "config.num_heads is -2: it must be a whole number, 1 or more"),
        ({"vocab_size": 99}, r"vocab_size is 99: the teacher's tokenizer has \d+ tokens\. Set it to at least \d+"),
        ({"feed_forward_proj": "gated-gated-x"}, r"no model .* \(d_model 16, num_heads 2, d_kv 8, d_ff 32\)"),
        ({"feed_forward_proj": "no-such"}, "no model can be built from it .*Check feed_forward_proj"),
        ({"feed_forward_proj": "nothing"}, "no model can be built from it .*Check feed_forward_proj"),
        ({"relative_attention_num_buckets": 2}, "no model can be built from it .*relative_attention_"),
        ({"model_type": "bart", "d_model": 9, "num_attention_heads": 2},
         "no model can be built .*Set encoder_attention_heads and decoder_attention_heads to divisors of d_model"),
        ({"model_type": "bartt"}, "model_type is 'bartt': .* Use 'bart', or another type such as llama or t5"),
        ({"model_type": "t5gemma"}, r"several configs in one\. Use an encoder-decoder with one config, such as t5 or bart"),
        ({"model_type": "whisper"}, "an encoder-decoder student reads text"),
    ],
    ids=str,
)  # fmt: skip
def test_configs_that_make_no_student(
    start: Make, t5: Path, tmp_path: Path, config: dict[str, Any], words: str
) -> None:
    recipe = start({"config": config}, t5)
    assert re.search(words, refused(recipe))
    with pytest.raises(RecipeError):
        made(recipe, tmp_path / "made")
    assert not (tmp_path / "made").exists()


# ------------------------------------------------------------------------------------------------------------- what is not


INITS: dict[str, Callable[[Path], dict[str, Any]]] = {
    "model": lambda model: {"model": str(model)},
    "config": lambda model: {"config": {"model_type": json.loads((model / "config.json").read_text())["model_type"]}},
}


@pytest.mark.parametrize("mode", ["white-box", "black-box"])
@pytest.mark.parametrize("init", INITS)
def test_a_student_is_of_its_teachers_kind(start: Make, t5: Path, tiny_model: Path, init: str, mode: str) -> None:
    """Causal of causal, encoder-decoder of encoder-decoder; also where the tokenizers are one or do not matter."""
    names = {t5: "an encoder-decoder", tiny_model: "a causal language model"}
    for teacher, student in ((t5, tiny_model), (tiny_model, t5)):
        recipe = start(INITS[init](student), teacher, mode=mode)
        for check in (check_student, check_labels):
            with pytest.raises(RecipeError) as caught:
                check(recipe)
            message = str(caught.value)
            assert f"teacher.model ({teacher}) is {names[teacher]} (" in message
            assert re.search(
                rf"student\.init\.(model|config\.model_type) is .*: the student is {names[student]} \(", message
            )
            assert f"Use a student that is {names[teacher]}, or a teacher that is {names[student]}" in message


def test_of_a_teacher_behind_an_api_any_student_learns(start: Make, t5: Path, bart: Path, tiny_model: Path) -> None:
    for student in (t5, bart, tiny_model):
        recipe = start({"model": str(student)}, mode="black-box")
        api = {"kind": "openai", "model": "a-model", "options": {"base_url": "http://localhost:1"}}
        recipe = Recipe.model_validate(recipe.model_dump(by_alias=True) | {"teacher": api, "label": {}})
        check_start(recipe, recipe.student)


def without_start(model: Path, folder: Path) -> Path:
    """The model, whose files do not say what its decoder begins with."""
    shutil.copytree(model, folder)
    for name in ("config.json", "generation_config.json"):
        settings = json.loads((folder / name).read_text())
        settings.pop("decoder_start_token_id", None)
        (folder / name).write_text(json.dumps(settings))
    return folder


def test_a_decoder_start_that_is_not_set(start: Make, t5: Path, tmp_path: Path) -> None:
    folder = without_start(t5, tmp_path / "unset")
    message = refused(start({"model": str(folder)}, t5))
    assert (
        f"student.init.model is '{folder}': the model is an encoder-decoder without a decoder_start_token_id" in message
    )
    assert "teacher.model is" in refused(start({"from": "teacher", "layers": 1}, folder))
    for config in ({"d_ff": 8}, {"model_type": "t5", "d_model": 8}):
        message = refused(start({"config": config}, folder))
        assert (
            "has no decoder_start_token_id that it could inherit. Add student.init.config.decoder_start_token_id"
            in message
        )
    recipe = start({"config": {"model_type": "t5", "d_model": 8, "decoder_start_token_id": 0}}, folder)
    check_start(recipe, recipe.student)


def test_models_that_are_no_start(start: Make, t5: Path, tmp_path: Path) -> None:
    t5_config = T5Config.from_pretrained(t5)
    bart = BartConfig(
        vocab_size=300, d_model=8, encoder_layers=1, decoder_layers=1, encoder_attention_heads=1,
        decoder_attention_heads=1, encoder_ffn_dim=8, decoder_ffn_dim=8, max_position_embeddings=16,
    )  # fmt: skip
    fsmt = FSMTConfig(
        langs=["en", "de"], src_vocab_size=30, tgt_vocab_size=40, d_model=8, encoder_layers=1, decoder_layers=1,
        encoder_attention_heads=1, decoder_attention_heads=1, encoder_ffn_dim=8, decoder_ffn_dim=8,
        tie_word_embeddings=False,
    )  # fmt: skip
    others = {
        "a T5EncoderModel, but a student predicts the next token": T5EncoderModel(t5_config),
        "a T5Model, but an encoder-decoder student reads text": T5Model(T5Config.from_pretrained(t5)),
        "a BartModel, but an encoder-decoder student reads text": BartModel(bart),
        "reads one vocabulary (30 tokens) and writes another (40)": FSMTForConditionalGeneration(fsmt),
    }
    for place, (words, model) in enumerate(others.items()):
        folder = tmp_path / str(place)
        model.save_pretrained(folder)
        AutoTokenizer.from_pretrained(t5).save_pretrained(folder)
        message = refused(start({"model": str(folder)}, t5))
        assert words in message
        assert f"student.init.model is '{folder}'" in message
        assert "...ForConditionalGeneration" in message or "with one vocabulary" in message


def test_copied_layers_have_the_teachers_width(start: Make, t5: Path) -> None:
    for init in ({"from": "teacher", "layers": 2, "config": {"d_model": 64}}, {"layers": 2, "config": {"d_model": 64}}):
        with pytest.raises(
            RecipeError, match=r"student\.init\.config is .*'d_model': 64.*copied layers have the teacher's w"
        ):
            start(init, t5)


@pytest.mark.parametrize(
    ("layers", "words"),
    [
        (
            {"encodr": 2},
            r"student\.init\.layers is \{'encodr': 2\}: the stacks of an encoder-decoder are",
        ),
        ({}, r"student\.init\.layers is \{\}: the stacks"),
        ({"encoder": None, "decoder": None}, r"student\.init\.layers is .*: the stacks"),
        ({"encoder": 0}, r"layers\.encoder is 0: it must be at least 1"),
        (
            {"encoder": 1, "decoder": [2, 1]},
            r"layers\.decoder is \[2, 1\]: it is not a rising list",
        ),
    ],
    ids=str,
)
def test_layers_that_are_none(start: Make, t5: Path, layers: Any, words: str) -> None:
    with pytest.raises(RecipeError, match=words):
        start({"from": "teacher", "layers": layers}, t5)


# ------------------------------------------------------------------------------------------------------------ what learns


@pytest.mark.parametrize("family", FAMILIES)
def test_a_frozen_embedding_is_that_of_both_stacks(tmp_path: Path, family: Folder) -> None:
    model = AutoModelForSeq2SeqLM.from_pretrained(family(tmp_path / "model"))
    freeze(model, ["embedding"])
    embeddings = (model.get_encoder().embed_tokens, model.get_decoder().embed_tokens)
    assert all(not embedding.weight.requires_grad for embedding in embeddings)
    assert model.get_output_embeddings().weight.requires_grad == (family is t5_with_a_head)
    assert len([1 for weight in model.parameters() if not weight.requires_grad]) == 1
    freeze(model, ["head"])
    assert not model.get_output_embeddings().weight.requires_grad


# ---------------------------------------------------------------------------------------------------------------- t5-small


def test_t5_smalls_own_config_is_a_start(start: Make, tmp_path: Path) -> None:
    """By its config and its tokenizer alone: 60.5 million parameters are not made for it."""
    tokenizer = t5_tokenizer(tmp_path / "t5-small")
    (tmp_path / "t5-small/config.json").write_text(json.dumps(CONFIG))
    assert len(tokenizer) < CONFIG["vocab_size"]
    narrower = {"d_model": 256, "d_ff": 1024, "num_heads": 4, "num_layers": 3, "num_decoder_layers": 3}
    for config, parameters in (({}, 60_506_624), (narrower, 13_734_400)):
        recipe = start({"config": config}, tmp_path / "t5-small")
        assert recipe.student is not None
        check_start(recipe, recipe.student)
        shapes = meta_model(recipe, recipe.student)
        assert sum(weight.numel() for weight in shapes.parameters()) == parameters
    words = "student.init.layers.decoder is 7: the teacher's decoder has only 6 layers"
    assert words in refused(start({"from": "teacher", "layers": {"encoder": 3, "decoder": 7}}, tmp_path / "t5-small"))


def test_a_small_copy_of_a_t5_small(start: Make, tmp_path: Path) -> None:
    teacher = t5_small(tmp_path / "teacher", d_model=32, d_ff=48, d_kv=8, num_heads=2, num_layers=4, vocab_size=512)
    recipe = start({"from": "teacher", "layers": {"encoder": 2, "decoder": [1]}}, teacher)
    check_student(recipe)
    model = made(recipe, tmp_path / "made")
    assert torch.equal(logits(model), logits(by_hand(teacher, [0, 3], [1])))
    assert model.config.task_specific_params["summarization"]["prefix"] == "summarize: "

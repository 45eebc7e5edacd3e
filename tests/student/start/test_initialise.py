"""Where a student starts: what its weights and settings are then, and what is refused before any weights are read."""

from __future__ import annotations

import asyncio
import json
import re
import shutil
from collections.abc import Callable
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import (
    AutoModelForCausalLM,
    AutoTokenizer,
    BertConfig,
    BertForMaskedLM,
    Gemma3TextConfig,
    GPT2Config,
    LlamaConfig,
    LlamaForSequenceClassification,
    LlamaModel,
    T5Config,
    T5ForConditionalGeneration,
)

from stillhouse.errors import RecipeError, TeacherUnavailable
from stillhouse.labelling.engine import label
from stillhouse.models.find import find_model
from stillhouse.models.generate import generate
from stillhouse.models.load import decode_completion, load_language_model
from stillhouse.stages.checks import check_student
from stillhouse.student.start.stacks import evenly_spaced
from stillhouse.student.training.train import distill
from stillhouse.student.training.untrained import prepare_untrained
from tests.student.starts import Make, made, refused, start

__all__ = ["start"]  # a fixture

SMALL = {"num_hidden_layers": 4, "hidden_size": 16, "num_attention_heads": 2, "vocab_size": 260}


def saved(config: Any, folder: Path, tokenizer: Path) -> Path:
    """A random model of this config, with a tokenizer."""
    torch.manual_seed(1)
    AutoModelForCausalLM.from_config(config).save_pretrained(folder)
    AutoTokenizer.from_pretrained(tokenizer).save_pretrained(folder)
    return folder


def gemma(folder: Path, tokenizer: Path) -> Path:
    """A config that lists one value a layer, and two end tokens."""
    kinds = ["sliding_attention", "full_attention", "sliding_attention", "full_attention"]
    config = Gemma3TextConfig(
        **SMALL, intermediate_size=32, num_key_value_heads=1, head_dim=8, layer_types=kinds, eos_token_id=[0, 1, 2, 3]
    )
    return saved(config, folder, tokenizer)


def gpt2(folder: Path, tokenizer: Path) -> Path:
    """A config that has its own names for things."""
    return saved(GPT2Config(n_layer=4, n_embd=16, n_head=2, vocab_size=260, eos_token_id=0), folder, tokenizer)


# --------------------------------------------------------------------------------------------------- layers of the teacher


@pytest.mark.parametrize(("layers", "kept"), [(1, [0]), (2, [0, 3]), (3, [0, 2, 3]), ([1, 2], [1, 2]), ([3], [3])])
def test_layers_are_the_teachers(start: Make, tiny_model: Path, tmp_path: Path, layers: Any, kept: list[int]) -> None:
    model = made(start({"from": "teacher", "layers": layers}), tmp_path / "made")
    teacher = AutoModelForCausalLM.from_pretrained(tiny_model)
    assert model.config.num_hidden_layers == len(model.model.layers) == len(kept)
    for new, old in enumerate(kept):
        theirs = teacher.model.layers[old].state_dict()
        assert all(torch.equal(own, theirs[name]) for name, own in model.model.layers[new].state_dict().items())
    assert torch.equal(model.lm_head.weight, teacher.lm_head.weight)


@pytest.mark.parametrize("layers", range(2, 12))
def test_evenly_spaced_layers_have_both_ends(layers: int) -> None:
    kept = evenly_spaced(layers, 12)
    steps = [after - before for before, after in pairwise(kept)]
    assert (kept[0], kept[-1], len(kept)) == (0, 11, layers)
    assert max(steps) - min(steps) <= 1


@pytest.mark.parametrize("make_teacher", [gemma, gpt2])
def test_layers_of_other_families(
    start: Make, tiny_model: Path, tmp_path: Path, make_teacher: Callable[[Path, Path], Path]
) -> None:
    teacher = make_teacher(tmp_path / "teacher", tiny_model)
    model = made(start({"from": "teacher", "layers": [1, 2]}, teacher), tmp_path / "made")
    whole = AutoModelForCausalLM.from_pretrained(teacher)
    assert model.config.num_hidden_layers == 2
    assert model.config.eos_token_id == whole.config.eos_token_id
    if make_teacher is gemma:
        assert model.config.layer_types == ["full_attention", "sliding_attention"]
    tokens = torch.arange(8)[None]
    for name in ("layers", "h"):  # the teacher with its other layers taken out
        if layers := getattr(whole.base_model, name, None):
            setattr(whole.base_model, name, torch.nn.ModuleList(layers[1:3]))
    whole.config = model.config
    for place, layer in enumerate(getattr(whole.base_model, "layers", whole.base_model.children())):
        if hasattr(layer, "self_attn"):
            layer.self_attn.layer_idx = place
    whole.base_model.config = model.config
    expected = whole(input_ids=tokens, use_cache=False).logits
    torch.testing.assert_close(model(input_ids=tokens, use_cache=False).logits, expected)


@pytest.mark.parametrize(
    ("layers", "words"),
    [
        (9, "student.init.layers is 9: the teacher has only 4 layers. Set it to a number from 1 to 4."),
        ([0, 4], "student.init.layers is [0, 4]: the teacher has no layer 4. Use layers from 0 to 3."),
    ],
)
def test_layers_that_the_teacher_lacks(start: Make, tiny_model: Path, tmp_path: Path, layers: Any, words: str) -> None:
    teacher = shutil.copytree(tiny_model, tmp_path / "teacher")
    (teacher / "model.safetensors").unlink()
    assert words in refused(start({"from": "teacher", "layers": layers}, teacher))
    with pytest.raises(RecipeError, match="student.init.layers"):
        check_student(start({"from": "teacher", "layers": layers}))


# ----------------------------------------------------------------------------------------------------------------- configs


def test_a_narrower_teacher(start: Make, tmp_path: Path) -> None:
    model = made(
        start({"config": {"hidden_size": 16, "num_hidden_layers": 3, "intermediate_size": 24}}), tmp_path / "a"
    )
    config = model.config
    assert (config.hidden_size, config.num_hidden_layers, config.intermediate_size) == (16, 3, 24)
    assert (config.num_attention_heads, config.num_key_value_heads, config.head_dim) == (4, 2, 4)
    assert (config.vocab_size, config.eos_token_id, config.tie_word_embeddings) == (260, 0, True)
    again = made(
        start({"config": {"hidden_size": 16, "num_hidden_layers": 3, "intermediate_size": 24}}), tmp_path / "b"
    )
    assert all(torch.equal(one, other) for one, other in zip(model.parameters(), again.parameters(), strict=True))
    assert AutoTokenizer.from_pretrained(tmp_path / "a").chat_template


@pytest.mark.parametrize(
    ("layers", "kinds"), [(2, ["sliding_attention", "full_attention"]), (6, None), (4, None)], ids=str
)
def test_settings_that_are_listed_by_layer_follow_their_number(
    start: Make, tiny_model: Path, tmp_path: Path, layers: int, kinds: list[str] | None
) -> None:
    recipe = start({"config": {"num_hidden_layers": layers}}, gemma(tmp_path / "teacher", tiny_model))
    config = made(recipe, tmp_path / "made").config
    assert len(config.layer_types) == config.num_hidden_layers == layers
    assert kinds is None or config.layer_types == kinds
    assert config.eos_token_id == [0, 1, 2, 3]


@pytest.mark.parametrize("kind", ["llama", "gpt_neox", "gpt2"])
def test_a_config_of_its_own_ends_as_the_teacher_does(start: Make, tmp_path: Path, kind: str) -> None:
    own = {"n_layer": 2, "n_embd": 16, "n_head": 2} if kind == "gpt2" else {**SMALL, "intermediate_size": 32}
    recipe = start(
        {
            "config": {"model_type": kind, **own},
        }
    )
    model = made(recipe, tmp_path / "made")
    assert (model.config.model_type, model.config.vocab_size) == (kind, 260)
    assert model.config.eos_token_id == model.generation_config.eos_token_id == 0
    lm = load_language_model(tmp_path / "made")
    assert lm.end_ids == [0]
    assert isinstance(decode_completion(lm, generate(lm, [[5, 6]], max_tokens=4)[0]), str)


def test_fresh_weights_are_float32_unless_the_config_says_otherwise(start: Make, tmp_path: Path) -> None:
    plain = made(start({"config": {"hidden_size": 16}}), tmp_path / "plain")
    small = made(start({"config": {"hidden_size": 16, "dtype": "bfloat16"}}), tmp_path / "small")
    assert (plain.dtype, small.dtype) == (torch.float32, torch.bfloat16)


@pytest.mark.parametrize(
    ("config", "words"),
    [
        (
            {"hiden_size": 16},
            "student.init.config.hiden_size: a llama config has no such key. Did you mean 'hidden_size'?",
        ),
        ({"model_type": "llama", "n_layer": 2}, "student.init.config.n_layer: a llama config has no such key."),
        (
            {"model_type": "lama"},
            "student.init.config.model_type is 'lama': .* Use 'llama', or another type",
        ),
        (
            {"hidden_size": 30},
            r"no model .* \(hidden_size 30, num_attention_heads 4, .*divides hidden_size",
        ),
        ({"hidden_size": 20}, "head_dim 5.*head_dim is even"),
        ({"num_attention_heads": 1}, "1 attention heads cannot share 2 key-value heads evenly"),
        ({"hidden_size": "wide"}, "student.init.config.hidden_size is 'wide': it must be a whole number, 1 or more"),
        ({"num_hidden_layers": 0}, "student.init.config.num_hidden_layers is 0: it must be a whole number, 1 or more"),
        ({"vocab_size": 259}, "vocab_size is 259: the teacher's tokenizer has 260 tokens. Set it to at least 260"),
        ({"model_type": "gpt2", "n_embd": 15, "n_head": 2}, "student.init.config: no model can be built from it"),
        ({"model_type": "gemma3"}, "several configs in one. Use its text part, 'gemma3_text'"),
        (
            {"model_type": "t5"},
            r"student.init.config.model_type is 't5': the student is an encoder-decoder .* \(llama\)",
        ),
        ({"model_type": "bert"}, "predicts the next token from those before it"),
    ],
)
def test_configs_that_make_no_student(start: Make, config: dict[str, Any], words: str, tmp_path: Path) -> None:
    recipe = start({"config": config})
    assert re.search(words, refused(recipe))
    with pytest.raises(RecipeError):
        made(recipe, tmp_path / "made")
    assert not (tmp_path / "made").exists()


# ------------------------------------------------------------------------------------------------------------ other models


def test_a_hub_model_of_a_revision(
    start: Make, tiny_model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked = []
    monkeypatch.setattr(
        "huggingface_hub.snapshot_download", lambda name, **more: asked.append((name, more["revision"])) or tiny_model
    )
    model = made(start({"model": "some/student", "revision": "v2"}), tmp_path / "made")
    assert set(asked) == {("some/student", "v2")}
    assert model.config.num_hidden_layers == 4


def test_a_student_may_be_a_start(start: Make, tmp_path: Path) -> None:
    recipe = start({"from": "teacher", "layers": 2})
    assert recipe.student is not None
    distill(recipe, recipe.student, asyncio.run(label(recipe)).dataset)
    folder = Path(recipe.students) / recipe.name / "white-box"
    second = start({"model": str(folder)})
    model, first = made(second, tmp_path / "made"), AutoModelForCausalLM.from_pretrained(folder)
    assert all(torch.equal(one, other) for one, other in zip(model.parameters(), first.parameters(), strict=True))
    assert second.student is not None
    before = prepare_untrained(second.model_copy(update={"students": str(tmp_path / "second")}), second.student).key
    first.model.norm.weight.data += 1
    first.save_pretrained(folder)
    after = prepare_untrained(second.model_copy(update={"students": str(tmp_path / "second")}), second.student).key
    assert before != after  # the folder has the same name, and is another start


def test_models_that_are_no_start(start: Make, tiny_model: Path, tmp_path: Path) -> None:
    tiny = {
        "vocab_size": 260,
        "hidden_size": 16,
        "num_attention_heads": 2,
        "num_hidden_layers": 1,
        "intermediate_size": 16,
    }
    t5 = T5Config(vocab_size=260, d_model=16, d_kv=8, d_ff=16, num_layers=1, num_heads=2, decoder_start_token_id=0)
    others = {
        "the student is an encoder-decoder (t5), and teacher.model": T5ForConditionalGeneration(t5),
        "BertForMaskedLM, but a student predicts": BertForMaskedLM(BertConfig(**tiny)),
        "LlamaForSequenceClassification, but a student": LlamaForSequenceClassification(LlamaConfig(**tiny)),
        "LlamaModel, but a student predicts": LlamaModel(LlamaConfig(**tiny)),
    }
    for place, (words, model) in enumerate(others.items()):
        folder = tmp_path / str(place)
        model.save_pretrained(folder)
        AutoTokenizer.from_pretrained(tiny_model).save_pretrained(folder)
        message = refused(start({"model": str(folder)}))
        assert words in message
        assert f"student.init.model is '{folder}'" in message
    with pytest.raises(TeacherUnavailable, match="student.init.model is 'nowhere/at-all'"):
        check_student(start({"model": "nowhere/at-all"}))


def test_a_model_that_lacks_weights_is_no_start(start: Make, tiny_model: Path, tmp_path: Path) -> None:
    """The library would make them up at random."""
    headless = LlamaModel(LlamaConfig(**{**SMALL, "intermediate_size": 16, "tie_word_embeddings": False}))
    headless.save_pretrained(tmp_path / "headless")
    AutoTokenizer.from_pretrained(tiny_model).save_pretrained(tmp_path / "headless")
    file = tmp_path / "headless" / "config.json"
    file.write_text(json.dumps(json.loads(file.read_text()) | {"architectures": ["LlamaForCausalLM"]}))
    with pytest.raises(RecipeError, match=r"not a complete causal language model: it lacks lm_head\.weight"):
        made(start({"model": str(tmp_path / "headless")}), tmp_path / "made")


def test_quantised_weights_are_no_start(start: Make, tiny_model: Path, tmp_path: Path) -> None:
    folder = shutil.copytree(tiny_model, tmp_path / "int4")
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(
        json.dumps(config | {"quantization_config": {"quant_method": "awq", "bits": 4}})
    )
    assert "its weights are quantised" in refused(start({"model": str(folder)}))
    assert "teacher.model is" in refused(start({"from": "teacher", "layers": 2}, folder))


def test_weights_in_pickles_are_refused(start: Make, tiny_model: Path, tmp_path: Path) -> None:
    folder = shutil.copytree(tiny_model, tmp_path / "pickled")
    torch.save(AutoModelForCausalLM.from_pretrained(folder).state_dict(), folder / "pytorch_model.bin")
    recipe = start({"model": str(folder)})
    made(recipe, tmp_path / "made")
    assert [file.name for file in (tmp_path / "made").glob("*model*")] == ["model.safetensors"]
    (folder / "model.safetensors").unlink()
    with pytest.raises(RecipeError, match=r"student\.init\.model is .*pytorch_model\.bin.*only safetensors are loaded"):
        check_student(recipe)
    with pytest.raises(RecipeError, match=r"teacher\.model is .*If you trust the model, convert it once"):
        find_model(str(folder))


# --------------------------------------------------------------------------------------------------------- what is written


def test_a_trained_student_has_the_settings_of_its_start(start: Make, tiny_model: Path, tmp_path: Path) -> None:
    """Also such settings of `generate` as the library reads and would not write."""
    folder = shutil.copytree(tiny_model, tmp_path / "model")
    own = {"eos_token_id": [0, 5], "do_sample": False, "temperature": 0.6, "top_p": 0.9, "repetition_penalty": 1.1}
    (folder / "generation_config.json").write_text(json.dumps(own))
    parts = start({"model": str(folder)}).student
    assert parts is not None
    recipe = start({"model": str(folder)}, train={**parts.train, "gradient_checkpointing": True})
    assert recipe.student is not None
    distill(recipe, recipe.student, asyncio.run(label(recipe)).dataset)
    place = Path(recipe.students) / recipe.name
    for student in ("untrained", "white-box"):
        assert json.loads((place / student / "generation_config.json").read_text()) == own
        config = json.loads((place / student / "config.json").read_text())
        assert config["use_cache"] is True
        assert config == json.loads((tiny_model / "config.json").read_text())
        assert load_language_model(place / student).end_ids == [0, 5]

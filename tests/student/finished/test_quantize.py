"""The int8 copy: loaded by transformers in one line it says what the student says, is smaller, and is made once."""

import asyncio
import importlib.util
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torchao.quantization import Int8Tensor, Int8WeightOnlyConfig
from transformers import (
    AutoModelForCausalLM,
    AutoModelForSeq2SeqLM,
    AutoTokenizer,
    GPT2Config,
    LlamaConfig,
    LlamaForCausalLM,
    TorchAoConfig,
)

from stillhouse.dataset.store import Dataset
from stillhouse.errors import RecipeError
from stillhouse.evaluation.evaluate import evaluate
from stillhouse.labelling.engine import label
from stillhouse.models.generate import generate
from stillhouse.models.load import load_language_model
from stillhouse.recipe.recipe import Recipe
from stillhouse.recipe.student import StudentSettings
from stillhouse.stages.checks import check_student
from stillhouse.stages.stages import distill_stage, students_to_train
from stillhouse.student.finished.folder import read_card, student_folder
from stillhouse.student.finished.quantize import quantize
from stillhouse.student.training import train as training
from stillhouse.student.training.train import distill
from tests.conftest import MakeRecipe, make_tiny_model
from tests.encoder_decoders import tiny_bart, tiny_t5

Labelled = tuple[Recipe, StudentSettings, Dataset]


def calm_model(folder: Path, *, tied: bool, dtype: torch.dtype = torch.float32) -> Path:
    """The tiny model's tokenizer with weights as small as a trained model's, and bias where a Llama may have one."""
    make_tiny_model(folder)
    torch.manual_seed(3)
    config = LlamaConfig(
        vocab_size=260,
        hidden_size=64,
        intermediate_size=128,
        num_hidden_layers=3,
        num_attention_heads=4,
        num_key_value_heads=2,
        tie_word_embeddings=tied,
        attention_bias=True,
        eos_token_id=0,
        pad_token_id=None,
        bos_token_id=None,
        initializer_range=0.08,
    )
    LlamaForCausalLM(config).to(dtype).save_pretrained(folder)
    return folder


def logprobs(folder: Path, **options: Any) -> torch.Tensor:
    """Of random tokens, as anybody would load and run the model: (batch, time, vocabulary)."""
    tokens = torch.randint(260, (4, 40), generator=torch.Generator().manual_seed(0))
    model = AutoModelForCausalLM.from_pretrained(folder, **options).eval()
    with torch.no_grad():
        return model(tokens).logits.double().log_softmax(-1)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("tied", [True, False])
def test_the_reloaded_copy_says_what_the_student_says(tmp_path: Path, tied: bool, dtype: torch.dtype) -> None:
    source = calm_model(tmp_path / "source", tied=tied, dtype=dtype)
    copy = quantize(source, tmp_path / "int8")
    student, small = logprobs(source, dtype=torch.float32), logprobs(tmp_path / "int8", dtype=torch.float32)
    kl = (student.exp() * (student - small)).sum(-1).mean()
    uniform = (student.exp() * (student + torch.tensor(260.0).log())).sum(-1).mean()
    assert 0 < kl < 0.002 * uniform
    assert (student.argmax(-1) == small.argmax(-1)).double().mean() > 0.9
    model = AutoModelForCausalLM.from_pretrained(tmp_path / "int8")
    assert model.dtype == dtype
    assert (model.lm_head.weight is model.model.embed_tokens.weight) == tied
    assert torch.equal(model.lm_head.weight, AutoModelForCausalLM.from_pretrained(source).lm_head.weight)
    eighths = [name for name, one in model.named_parameters() if isinstance(one, Int8Tensor)]
    assert len(eighths) == 3 * 7  # attention and feed-forward of three layers
    assert copy.parameters == sum(model.get_parameter(name).numel() for name in eighths)


def encoder_decoder_logprobs(model: Any) -> torch.Tensor:
    """Of random tokens: (batch, time, vocabulary)."""
    tokens = torch.randint(5, 250, (4, 60), generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        logits = model.eval()(input_ids=tokens[:, :40], decoder_input_ids=tokens[:, 40:], use_cache=False).logits
    return logits.double().log_softmax(-1)


def with_a_head_of_its_own(folder: Path) -> Path:
    """A T5 1.1 as it is on a hub: its head is not its embedding, whatever its config says."""
    model = AutoModelForSeq2SeqLM.from_pretrained(tiny_t5(folder, layers=3, width=64, initializer_factor=1.0))
    model.lm_head.weight = torch.nn.Parameter(model.shared.weight.flip(0) * 0.5)
    model.save_pretrained(folder)
    return folder


CALM: dict[str, Callable[[Path], Path]] = {  # weights as small as a trained model's
    "t5": lambda folder: tiny_t5(folder, layers=3, width=64, initializer_factor=1.0),
    "gated t5": lambda folder: tiny_t5(
        folder, layers=3, width=64, initializer_factor=1.0, feed_forward_proj="gated-gelu"
    ),
    "t5 with a head": with_a_head_of_its_own,
    "bart": lambda folder: tiny_bart(folder, layers=3, width=64, init_std=0.08),
}


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("family", CALM)
def test_the_reloaded_copy_of_an_encoder_decoder(tmp_path: Path, family: str, dtype: torch.dtype) -> None:
    """It says what the student says, exactly what it said before it was saved, and has the student's embedding and head."""
    source = CALM[family](tmp_path / "source")
    whole = AutoModelForSeq2SeqLM.from_pretrained(source).to(dtype)
    whole.save_pretrained(source)
    copy = quantize(source, tmp_path / "int8")
    settings = TorchAoConfig(Int8WeightOnlyConfig())
    unsaved = AutoModelForSeq2SeqLM.from_pretrained(source, dtype="auto", quantization_config=settings)
    model = AutoModelForSeq2SeqLM.from_pretrained(tmp_path / "int8", dtype="auto")
    assert model.dtype == dtype
    assert torch.equal(encoder_decoder_logprobs(model), encoder_decoder_logprobs(unsaved))
    student, small = encoder_decoder_logprobs(whole), encoder_decoder_logprobs(model)
    kl = (student.exp() * (student - small)).sum(-1).mean()
    uniform = (student.exp() * (student + torch.tensor(float(student.shape[-1])).log())).sum(-1).mean()
    assert 0 < kl < 0.002 * uniform
    head, embedding = model.get_output_embeddings().weight, model.get_input_embeddings().weight
    assert torch.equal(head, whole.get_output_embeddings().weight)
    assert torch.equal(embedding, whole.get_input_embeddings().weight)
    assert (head is embedding) == (family != "t5 with a head")
    eighths = [name for name, one in model.named_parameters() if isinstance(one, Int8Tensor)]
    feed_forward = 3 if family == "gated t5" else 2
    assert len(eighths) == 3 * (4 + feed_forward) + 2 * (8 + feed_forward)
    assert copy.parameters == sum(model.get_parameter(name).numel() for name in eighths)
    lm, own = load_language_model(tmp_path / "int8"), load_language_model(source)
    assert (lm.start_id, lm.end_ids, lm.pad_id) == (own.start_id, own.end_ids, own.pad_id)
    answers = [generate(each, [[5, 6, 7], [8, 9]], max_tokens=6) for each in (lm, own)]
    assert dtype == torch.bfloat16 or answers[0] == answers[1]


@pytest.mark.slow
def test_the_copy_of_an_encoder_decoder_student_is_evaluated(tiny_recipe: MakeRecipe, tmp_path: Path) -> None:
    parts = tiny_recipe().model_dump(mode="json", by_alias=True)
    init = {"from": "teacher", "layers": {"encoder": 2, "decoder": 1}}
    recipe = tiny_recipe(
        teacher=parts["teacher"] | {"model": str(tiny_t5(tmp_path / "teacher", layers=3))},
        student=parts["student"] | {"init": init, "quantize": "int8"},
        label=parts["label"] | {"mode": "score"},
        evaluate=parts["evaluate"] | {"baselines": []},
    )
    check_student(recipe)
    dataset = asyncio.run(label(recipe)).dataset
    for student in students_to_train(recipe):
        distill(recipe, student, dataset)
    rows = {row.role: row for row in evaluate(recipe, students_to_train(recipe)[-1], dataset).report.models}
    whole, small = rows["white-box student"], rows["white-box student, int8"]
    assert whole.kl_per_token is not None
    assert small.kl_per_token is not None
    assert small.kl_per_token.mean == pytest.approx(whole.kl_per_token.mean, rel=0.02)


def test_the_copy_is_smaller_by_what_its_linear_layers_were(tmp_path: Path) -> None:
    source = calm_model(tmp_path / "source", tied=True)
    copy = quantize(source, tmp_path / "int8")
    before = (source / "model.safetensors").stat().st_size / 1e6
    assert copy.megabytes == sum(file.stat().st_size for file in (tmp_path / "int8").glob("*.safetensors")) / 1e6
    saved = 3 * copy.parameters / 1e6  # three of four bytes
    assert before - saved < copy.megabytes < before - 0.75 * saved  # scales, zero points and names take some
    assert not [file.name for file in (tmp_path / "int8").iterdir() if file.suffix in {".bin", ".pt", ".pth"}]
    assert AutoTokenizer.from_pretrained(tmp_path / "int8").chat_template


def test_a_student_has_its_copy_and_the_copy_comes_without_training_again(
    labelled: Labelled, monkeypatch: pytest.MonkeyPatch
) -> None:
    recipe, student, dataset = labelled
    plain = distill(recipe, student, dataset)
    folder = Path(recipe.students) / recipe.name / "white-box"
    weights = (folder / "model.safetensors").read_bytes()
    assert plain.int8 is None
    asking = student.model_copy(update={"quantize": "int8"})
    recipe = recipe.model_copy(update={"student": asking})
    monkeypatch.setattr(training, "StudentTrainer", None)  # calling it would raise
    assert student_folder(recipe, asking, "white-box", dataset).finished_card() is None
    added = distill_stage(recipe, asking, dataset)
    assert not added.trained
    assert added.card.int8 is not None
    assert added.card == plain.model_copy(update={"int8": added.card.int8}) == read_card(folder)
    assert (folder / "model.safetensors").read_bytes() == weights
    assert "quantize: int8" in (folder / "recipe.yaml").read_text()
    assert load_language_model(folder / "int8").tokenizer.chat_template
    monkeypatch.setattr(training, "add_int8", None)
    assert distill_stage(recipe, asking, dataset) == added
    assert distill(recipe, student, dataset) == added.card  # who does not ask for the copy is not disturbed by it


def test_a_copy_that_failed_leaves_the_student_and_is_made_by_the_next_run(
    labelled: Labelled, monkeypatch: pytest.MonkeyPatch
) -> None:
    recipe, student, dataset = labelled
    asking = student.model_copy(update={"quantize": "int8"})
    recipe = recipe.model_copy(update={"student": asking})
    place = student_folder(recipe, asking, "white-box", dataset)

    def full_disk(*_: Any) -> None:
        raise OSError("no space left")

    with monkeypatch.context() as patch:
        patch.setattr(training, "add_int8", full_disk)
        with pytest.raises(OSError, match="no space left"):
            distill(recipe, asking, dataset)
    assert place.trained_card() is not None
    assert place.finished_card() is None
    monkeypatch.setattr(training, "StudentTrainer", None)
    assert distill(recipe, asking, dataset).int8 is not None


def test_a_new_student_does_not_keep_the_copy_of_an_old_one(labelled: Labelled) -> None:
    recipe, student, dataset = labelled
    asking = student.model_copy(update={"quantize": "int8"})
    distill(recipe.model_copy(update={"student": asking}), asking, dataset)
    other = student.model_copy(update={"train": {**student.train, "learning_rate": 0.02}})
    assert distill(recipe.model_copy(update={"student": other}), other, dataset).int8 is None
    assert not (Path(recipe.students) / recipe.name / "white-box/int8").exists()


def test_a_baseline_has_no_copy(tiny_recipe: MakeRecipe) -> None:
    parts = tiny_recipe().model_dump(mode="json", by_alias=True)["student"]
    baseline, student = students_to_train(tiny_recipe(student=parts | {"quantize": "int8"}))
    assert (baseline.mode, baseline.quantize, student.quantize) == ("black-box", None, "int8")


def test_what_cannot_be_quantised_is_refused_before_training(tiny_recipe: MakeRecipe, tmp_path: Path) -> None:
    gpt2 = {"config": {"model_type": "gpt2", "n_layer": 1, "n_embd": 32, "n_head": 2}}
    with pytest.raises(RecipeError, match=r"student.quantize is 'int8': a gpt2 model has no linear layers"):
        check_student(tiny_recipe(student={"init": gpt2, "quantize": "int8"}))
    check_student(tiny_recipe(student={"init": gpt2}))
    folder = make_tiny_model(tmp_path / "gpt2")
    GPT2Config(n_layer=1, n_embd=32, n_head=2, vocab_size=260, architectures=["GPT2LMHeadModel"]).save_pretrained(
        folder
    )
    with pytest.raises(RecipeError, match=r"a gpt2 model has no linear layers"):
        check_student(tiny_recipe(student={"init": {"model": str(folder)}, "quantize": "int8"}))
    check_student(tiny_recipe(student={"init": {"from": "teacher", "layers": 2}, "quantize": "int8"}))


def test_without_torchao_the_pip_command_is_told_before_training(
    tiny_recipe: MakeRecipe, monkeypatch: pytest.MonkeyPatch
) -> None:
    recipe = tiny_recipe(student={"init": {"from": "teacher", "layers": 2}, "quantize": "int8"})
    find_spec = importlib.util.find_spec
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None if name == "torchao" else find_spec(name))
    with pytest.raises(RecipeError, match=r"pip install 'stillhouse\[int8\]'") as caught:
        check_student(recipe)
    assert caught.value.exit_status == 2

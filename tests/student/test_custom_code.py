"""A model with code of its own: never run unless the recipe trusts it, and then carried all the way."""

from __future__ import annotations

import asyncio
import json
import shutil
from pathlib import Path

import pytest
from transformers import AutoConfig

from stillhouse.errors import RecipeError
from stillhouse.evaluation.evaluate import evaluate
from stillhouse.labelling.engine import label
from stillhouse.models.load import load_language_model
from stillhouse.stages.checks import check_student
from stillhouse.stages.stages import students_to_train
from stillhouse.student.start.initialise import initialise
from stillhouse.student.training.train import distill
from tests.encoder_decoders import tiny_t5
from tests.student.starts import Make, made, refused, start

__all__ = ["start"]  # a fixture

CODE = """
from transformers import LlamaConfig, LlamaForCausalLM


class OwnConfig(LlamaConfig):
    model_type = "own"


class OwnForCausalLM(LlamaForCausalLM):
    config_class = OwnConfig
"""

CODE_OF_TWO = """
from transformers import T5Config, T5ForConditionalGeneration


class Own5Config(T5Config):
    model_type = "own5"


class Own5ForTalk(T5ForConditionalGeneration):
    config_class = Own5Config
"""


@pytest.fixture
def custom_code(tiny_model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A model that only code of its own can load."""
    monkeypatch.setattr("transformers.dynamic_module_utils.HF_MODULES_CACHE", str(tmp_path / "modules"))
    monkeypatch.setenv("HF_MODULES_CACHE", str(tmp_path / "modules"))
    folder = shutil.copytree(tiny_model, tmp_path / "own")
    (folder / "modeling_own.py").write_text(CODE)
    config = json.loads((folder / "config.json").read_text())
    code = {"AutoConfig": "modeling_own.OwnConfig", "AutoModelForCausalLM": "modeling_own.OwnForCausalLM"}
    own = {"model_type": "own", "architectures": ["OwnForCausalLM"], "auto_map": code}
    (folder / "config.json").write_text(json.dumps(config | own))
    return folder


def test_code_of_its_own_is_not_run_unless_it_is_trusted(start: Make, custom_code: Path) -> None:
    message = refused(start({"model": str(custom_code)}))
    assert f"student.init.model is '{custom_code}': only code that comes with the model can load it" in message
    assert "set student.trust_remote_code to true" in message
    teacher = start({"from": "teacher", "layers": 2}, custom_code)
    assert "teacher.model is" in refused(teacher)
    with pytest.raises(RecipeError, match=r"set teacher\.options\.trust_remote_code to true"):
        asyncio.run(label(teacher))


def test_a_built_in_class_is_taken_where_there_is_one(start: Make, custom_code: Path, tmp_path: Path) -> None:
    config = json.loads((custom_code / "config.json").read_text())
    (custom_code / "config.json").write_text(json.dumps(config | {"model_type": "llama"}))
    (custom_code / "modeling_own.py").write_text("raise RuntimeError('run')")
    assert type(made(start({"model": str(custom_code)}), tmp_path / "made")).__name__ == "LlamaForCausalLM"


@pytest.mark.parametrize("init", ["model", "layers", "config"])
def test_trusted_code_trains_and_goes_with_the_student(start: Make, custom_code: Path, init: str) -> None:
    inits = {
        "model": {"model": str(custom_code)},
        "layers": {"from": "teacher", "layers": 2},
        "config": {"config": {"hidden_size": 16}},
    }
    recipe = start(inits[init], custom_code, trust_remote_code=True)
    options = {"batch_size": 4, "trust_remote_code": True}
    recipe = recipe.model_copy(update={"teacher": recipe.teacher.model_copy(update={"options": options})})
    check_student(recipe)
    dataset = asyncio.run(label(recipe)).dataset
    for student in students_to_train(recipe):
        distill(recipe, student, dataset)
    folder = Path(recipe.students) / recipe.name / "white-box"
    assert (folder / "modeling_own.py").read_text() == CODE
    assert type(AutoConfig.from_pretrained(folder, trust_remote_code=True)).__name__ == "OwnConfig"
    if init == "layers":
        report = evaluate(recipe, students_to_train(recipe)[-1], dataset).report
        assert all(model.kl_per_token is not None for model in report.models)


@pytest.mark.parametrize("init", ["model", "layers", "config"])
def test_an_encoder_decoder_of_its_own_code_is_a_start(
    start: Make, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, init: str
) -> None:
    monkeypatch.setattr("transformers.dynamic_module_utils.HF_MODULES_CACHE", str(tmp_path / "modules"))
    monkeypatch.setenv("HF_MODULES_CACHE", str(tmp_path / "modules"))
    folder = tiny_t5(tmp_path / "own", layers=3, decoder_layers=2)
    (folder / "modeling_own5.py").write_text(CODE_OF_TWO)
    config = json.loads((folder / "config.json").read_text())
    code = {"AutoConfig": "modeling_own5.Own5Config", "AutoModelForSeq2SeqLM": "modeling_own5.Own5ForTalk"}
    own = {"model_type": "own5", "architectures": ["Own5ForTalk"], "auto_map": code}
    (folder / "config.json").write_text(json.dumps(config | own))
    inits = {
        "model": {"model": str(folder)},
        "layers": {"from": "teacher", "layers": {"encoder": [1, 2], "decoder": 1}},
        "config": {"config": {"d_ff": 8}},
    }
    assert "only code that comes with the model can load it" in refused(start(inits[init], folder))
    recipe = start(inits[init], folder, trust_remote_code=True)
    assert recipe.student is not None
    initialise(recipe, recipe.student, tmp_path / "made")
    lm = load_language_model(tmp_path / "made", trust_remote_code=True)
    assert type(lm.model).__name__ == "Own5ForTalk"
    depths = [len(stack.block) for stack in (lm.model.encoder, lm.model.decoder)]
    assert depths == ([2, 1] if init == "layers" else [3, 2])
    assert (tmp_path / "made/modeling_own5.py").read_text() == CODE_OF_TWO

"""TRL trains on a dataset's folder as it is, with nothing in between."""

import asyncio
from pathlib import Path

import pytest

from stillhouse.exchange.export import export_dataset
from stillhouse.labelling.engine import label
from tests.conftest import MakeRecipe

# TRL, and what it imports, warn of themselves.
pytestmark = [pytest.mark.slow, pytest.mark.filterwarnings("ignore")]


@pytest.mark.parametrize(
    ("soft", "exported"),
    [(None, False), ({"k": 8}, False), ({"encoding": "sampled", "draws": 10}, False), ({"k": 8}, True)],
    ids=["text", "top-k", "sampled", "exported"],
)
def test_trls_trainer_takes_some_steps(
    tiny_recipe: MakeRecipe, tiny_model: Path, tmp_path: Path, soft: object, exported: bool
) -> None:
    from datasets import load_dataset
    from transformers import AutoModelForCausalLM, AutoTokenizer
    from trl import SFTConfig, SFTTrainer

    recipe = tiny_recipe(
        label={"sampling": {"temperature": 0.8, "max_tokens": 6}, "soft": soft},
        student={"init": {"from": "teacher", "layers": 2}, "mode": "black-box"},
    )
    dataset = asyncio.run(label(recipe)).dataset
    folder = dataset.folder
    if exported:
        folder = export_dataset(dataset, "trl", tmp_path / "out").folder
    loaded = load_dataset(str(folder), cache_dir=str(tmp_path / "cache"))
    arguments = SFTConfig(
        output_dir=str(tmp_path / "trl"),
        max_steps=3,
        per_device_train_batch_size=2,
        learning_rate=1e-3,
        report_to=[],
        logging_steps=1,
        use_cpu=True,
        bf16=False,
    )
    tokenizer = AutoTokenizer.from_pretrained(tiny_model)
    tokenizer.pad_token = tokenizer.eos_token
    trainer = SFTTrainer(
        model=AutoModelForCausalLM.from_pretrained(tiny_model),
        args=arguments,
        train_dataset=loaded["train"],
        eval_dataset=loaded["validation"],
        processing_class=tokenizer,
    )
    assert trainer.train().global_step == 3
    losses = [entry["loss"] for entry in trainer.state.log_history if "loss" in entry]
    assert len(losses) == 3 and all(0 < loss < 50 for loss in losses)

"""Shared fixtures: a tiny real language model made on the spot, and recipes around it.

The tiny model is a Llama of some thousand parameters with random weights and a byte-level tokenizer: everything but its
wisdom is that of a large one. Tests marked `slow` use the real demo teacher.
"""

from __future__ import annotations

import asyncio
import gc
import json
import os
import tempfile
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import pytest
import yaml

os.environ.setdefault("HF_HUB_OFFLINE", "1")
os.environ.setdefault("DO_NOT_TRACK", "1")
os.environ.setdefault("STILLHOUSE_CACHE", tempfile.mkdtemp(prefix="stillhouse-cache-"))

from hypothesis import settings

from stillhouse.dataset.store import Dataset
from stillhouse.labelling.engine import label
from stillhouse.recipe.recipe import Recipe, recipe_from
from stillhouse.recipe.student import StudentSettings
from tests.paths import ROOT

settings.register_profile("stillhouse", deadline=None)  # machines are noisy; slowness is no failure
settings.load_profile("stillhouse")

CHAT_TEMPLATE = (
    "{% for message in messages %}<|{{ message['role'] }}|>{{ message['content'] }}<|end|>{% endfor %}"
    "{% if add_generation_prompt %}<|assistant|>{% endif %}"
)
DEMO = ROOT / "data/models/smollm2-135m-instruct"
WORDS = [
    "kettle",
    "hammer",
    "otter",
    "scarf",
    "nurse",
    "library",
    "thunder",
    "carrot",
    "violin",
    "tram",
    "sofa",
    "elbow",
]

# Files whose few tests take longest: each worker takes a whole file, and what is begun last ends last. All of flows/ come
# first, so that each worker's Prefect servers are stopped when it has no more of them: also idle they take computing time.
LONGEST_FIRST = (
    *(
        f"flows/test_{name}.py"
        for name in (
            *("parts", "deployments", "postgres", "sweep", "in_turn", "launch", "guard", "flows", "rounds", "growing"),
            *("artifacts", "definitions"),
        )
    ),
    *(
        "student/training/test_distributed.py",
        "docs/test_tutorial.py",
        "docs/test_notebook.py",
        "cli/test_namesakes.py",
        "stages/test_sweep.py",
        "cli/test_cli.py",
        "stages/rounds/test_rounds.py",
        "stages/test_t5_small_recipe.py",
        "test_wheel.py",
        "storage/test_storage_faults.py",
        "storage/test_storage_lock.py",
    ),
)

MakeRecipe = Callable[..., Recipe]


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Put the longest files first; the order inside a file stays."""
    rank = {ROOT / "tests" / name: place for place, name in enumerate(LONGEST_FIRST)}
    items.sort(key=lambda item: rank.get(item.path, len(rank)))


def pytest_collection_finish() -> None:
    """Leave what is imported out of later garbage collections: accelerate collects in every training, for 0.3 s."""
    gc.freeze()


def pytest_unconfigure() -> None:
    """Let them be collected at the end: a library says that it leaks what is not."""
    gc.unfreeze()


def make_tiny_model(folder: Path, *, layers: int = 4, seed: int = 0, template: bool = True, merges: int = 0) -> Path:
    """Write a small random Llama with a byte-level tokenizer; `merges` makes it another tokenizer."""
    import torch
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers
    from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    vocabulary = {
        token: number for number, token in enumerate(["<|end|>", "<|system|>", "<|user|>", "<|assistant|>", *alphabet])
    }
    pairs = [("t", "h"), ("e", "r"), ("i", "n")][:merges]
    vocabulary |= {left + right: len(vocabulary) + place for place, (left, right) in enumerate(pairs)}
    core = Tokenizer(models.BPE(vocab=vocabulary, merges=pairs))
    core.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    core.decoder = decoders.ByteLevel()
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=core, eos_token="<|end|>")
    tokenizer.add_special_tokens({"additional_special_tokens": ["<|system|>", "<|user|>", "<|assistant|>"]})
    if template:
        tokenizer.chat_template = CHAT_TEMPLATE
    tokenizer.save_pretrained(folder)
    torch.manual_seed(seed)
    config = LlamaConfig(
        vocab_size=len(tokenizer),
        hidden_size=32,
        intermediate_size=64,
        num_hidden_layers=layers,
        num_attention_heads=4,
        num_key_value_heads=2,
        max_position_embeddings=256,
        tie_word_embeddings=True,
        eos_token_id=0,
        pad_token_id=None,
        bos_token_id=None,
        initializer_range=0.3,
    )
    LlamaForCausalLM(config).save_pretrained(folder)
    return folder


@pytest.fixture
def float64() -> Iterator[None]:
    """Compute in float64 for the length of a test: see tests/precision.py."""
    from tests.precision import in_float64

    with in_float64():
        yield


@pytest.fixture(scope="session")
def tiny_model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A four-layer random model with a chat template."""
    return make_tiny_model(tmp_path_factory.mktemp("models") / "tiny")


@pytest.fixture(scope="session")
def demo_teacher() -> Path:
    """The real demo teacher; `make test` fetches it."""
    assert DEMO.is_dir(), f"{DEMO} is not there: run `stillhouse teacher fetch-demo`"
    return DEMO


@pytest.fixture
def word_prompts(tmp_path: Path) -> Path:
    """A prompt file of twelve words with references, and its template beside it."""
    rows = [{"word": word, "reference": f"A {word} is a thing."} for word in WORDS]
    (tmp_path / "words.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    (tmp_path / "words.j2").write_text("Explain {{ word }}.\n")
    return tmp_path / "words.jsonl"


@pytest.fixture
def scripted_recipe(tmp_path: Path, word_prompts: Path) -> MakeRecipe:
    """Makes recipes with the scripted teacher; keyword arguments replace top-level parts."""

    def make(**parts: Any) -> Recipe:
        return recipe_from(
            {
                "name": "test",
                "prompts": {"source": str(word_prompts), "template": str(tmp_path / "words.j2"), "holdout": 0.3},
                "teacher": {"kind": "scripted", "options": {"vocabulary": 64}},
                "label": {"shard_size": 4, "soft": {"k": 8}},
                "dataset": {"root": str(tmp_path / "labels"), "name": "words"},
                "students": str(tmp_path / "students"),
                **parts,
            },
            "test",
        )

    return make


@pytest.fixture
def api_recipe(tmp_path: Path) -> MakeRecipe:
    """Makes recipes of prompts as they are and an `openai` teacher; further keyword arguments are settings of `label`."""

    def make(
        base_url: str, prompts: Sequence[str], *, options: dict[str, Any] | None = None, price: Any = None, **label: Any
    ) -> Recipe:
        source = tmp_path / "prompts.jsonl"
        source.write_text("".join(json.dumps({"prompt": prompt}) + "\n" for prompt in prompts))
        return recipe_from(
            {
                "name": "api",
                "prompts": {"source": str(source)},
                "teacher": {
                    "kind": "openai",
                    "model": "stand-in",
                    "price": price,
                    "options": {"base_url": base_url, **(options or {})},
                },
                "label": {"shard_size": 50, "max_rejected": 1, **label},
                "dataset": {"root": str(tmp_path / "labels"), "name": "api"},
            },
            "api",
        )

    return make


@pytest.fixture
def tiny_recipe(scripted_recipe: MakeRecipe, tiny_model: Path, tmp_path: Path) -> MakeRecipe:
    """Makes white-box recipes with the tiny model as teacher; keyword arguments replace top-level parts."""

    def make(**parts: Any) -> Recipe:
        defaults: dict[str, Any] = {
            "teacher": {"kind": "transformers", "model": str(tiny_model), "options": {"batch_size": 4}},
            "label": {"sampling": {"temperature": 0.8, "max_tokens": 12}, "soft": {"k": 16}, "shard_size": 5},
            "student": {
                "init": {"from": "teacher", "layers": 2, "choose": "even"},
                "loss": {"temperature": 2.0},
                "train": {
                    "num_train_epochs": 2,
                    "per_device_train_batch_size": 4,
                    "learning_rate": 0.01,
                    "logging_steps": 1,
                },
            },
            "evaluate": {"answers": 2, "latency_prompts": 2, "reports": str(tmp_path / "reports")},
        }
        return scripted_recipe(**{**defaults, **parts})

    return make


@pytest.fixture
def labelled(tiny_recipe: MakeRecipe) -> tuple[Recipe, StudentSettings, Dataset]:
    """A white-box recipe, its student, and its labelled dataset."""
    recipe = tiny_recipe()
    assert recipe.student is not None
    return recipe, recipe.student, asyncio.run(label(recipe)).dataset


@pytest.fixture
def recipe_file(tmp_path: Path) -> Callable[[Recipe], Path]:
    """Writes a recipe where a command can read it."""

    def write(recipe: Recipe) -> Path:
        path = tmp_path / "recipe.yaml"
        path.write_text(yaml.safe_dump(recipe.model_dump(mode="json", by_alias=True)))
        return path

    return write

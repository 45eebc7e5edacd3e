"""Several models that label as one, against their averaged distributions."""

import asyncio
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from stillhouse.dataset.encodings import find_encoding
from stillhouse.dataset.store import Dataset
from stillhouse.errors import RecipeError
from stillhouse.labelling.engine import label
from stillhouse.models.layout import completion_logits, make_token_batch
from stillhouse.models.load import LanguageModel, load_language_model
from stillhouse.recipe.recipe import Recipe, recipe_from
from stillhouse.stages.checks import check_plan
from stillhouse.stages.stages import distill_students
from stillhouse.teachers.base import open_teacher
from tests.conftest import MakeRecipe, make_tiny_model
from tests.encoder_decoders import tiny_t5

SHARES = (0.5, 0.3, 0.2)


@pytest.fixture
def causal(tmp_path: Path) -> list[Path]:
    return [make_tiny_model(tmp_path / f"model-{seed}", seed=seed) for seed in (1, 2, 3)]


@pytest.fixture
def encoder_decoders(tmp_path: Path) -> list[Path]:
    made = []
    for seed in (1, 2, 3):
        torch.manual_seed(seed)
        made.append(tiny_t5(tmp_path / f"t5-{seed}"))
    return made


def recipe_of(make: MakeRecipe, models: list[Path], weights: Any = (5, 3, 2), **label_settings: Any) -> Recipe:
    raw = make().model_dump(mode="json", by_alias=True)
    del raw["teacher"]
    raw["teachers"] = {"ensemble": [str(one) for one in models], "weights": weights and list(weights)}
    raw["label"] |= {"soft": {"k": 300}, **label_settings}
    return recipe_from(raw, "test")


def mixture(models: list[LanguageModel], prompt: list[int], completion: list[int]) -> Any:
    """The averaged distributions at each completion token: (time, vocabulary)."""
    total = torch.zeros(())
    for lm, share in zip(models, SHARES, strict=True):
        batch = make_token_batch([prompt], [completion], lm.pad_id, lm.start_id)
        with torch.inference_mode():
            total = total + share * completion_logits(lm.model, batch).double().softmax(dim=-1)
    return total.numpy()


def check(dataset: Dataset, folders: list[Path]) -> list[tuple[list[int], Any]]:
    """Compare all stored labels with the models' averaged distributions; return tokens and distributions."""
    models = [load_language_model(one) for one in folders]
    rows = dataset.to_table("train")
    found = []
    for place in range(len(rows)):
        prompt, completion = (rows[name][place].as_py() for name in ("prompt_token_ids", "completion_token_ids"))
        exact = mixture(models, prompt, completion)
        chosen = exact[np.arange(len(completion)), completion]
        np.testing.assert_allclose(np.exp(rows["completion_logprobs"][place].as_py()), chosen, rtol=1e-3)
        soft = find_encoding("top-k").labels_at(rows, place)
        listed = np.take_along_axis(exact, soft.token_ids.astype(np.int64), axis=1)
        np.testing.assert_allclose(np.exp(soft.logprobs.astype(float)), listed, rtol=0.1)
        found.append((completion, exact))
    return found


@pytest.mark.parametrize("kind", ["causal", "encoder_decoders"])
def test_what_it_writes_and_says_is_of_the_averaged_distributions(
    kind: str, request: pytest.FixtureRequest, tiny_recipe: MakeRecipe
) -> None:
    folders: list[Path] = request.getfixturevalue(kind)
    sampling = {"temperature": 0, "max_tokens": 8}
    made = asyncio.run(label(recipe_of(tiny_recipe, folders, sampling=sampling))).dataset
    for completion, exact in check(made, folders):
        assert completion == exact.argmax(axis=1).tolist()
    teacher = made.manifest.teacher
    assert (teacher.kind, teacher.encoder_decoder) == ("ensemble", kind != "causal")
    assert teacher.model == " + ".join(map(str, folders))


def test_it_samples(causal: list[Path], tiny_recipe: MakeRecipe) -> None:
    check(asyncio.run(label(recipe_of(tiny_recipe, causal, samples=3))).dataset, causal)


@pytest.mark.parametrize("kind", ["causal", "encoder_decoders"])
def test_it_scores(kind: str, request: pytest.FixtureRequest, tiny_recipe: MakeRecipe) -> None:
    folders: list[Path] = request.getfixturevalue(kind)
    check(asyncio.run(label(recipe_of(tiny_recipe, folders, mode="score"))).dataset, folders)


@pytest.mark.slow
def test_a_student_of_its_first_model_learns_from_it(causal: list[Path], tiny_recipe: MakeRecipe) -> None:
    recipe = recipe_of(tiny_recipe, causal, soft={"k": 16})
    asyncio.run(label(recipe))
    *_, student = distill_students(recipe)
    assert student.card.held_out is not None


def test_its_name_depends_on_models_and_shares(causal: list[Path], tiny_recipe: MakeRecipe) -> None:
    def content(models: list[Path], weights: Any) -> str | None:
        recipe = recipe_of(tiny_recipe, models, weights)
        return open_teacher(recipe.teacher, recipe.label, recipe.seed).identity.content_sha256

    two = causal[:2]
    assert content(two, (2, 1)) == content(two, (4, 2))
    assert content(two, None) == content(two, (1, 1))
    assert len({content(two, (2, 1)), content(two, (1, 2)), content(causal, None), content(causal[::-1], None)}) == 4


@pytest.mark.parametrize(
    ("teachers", "words"),
    [
        ({"ensemble": ["MODEL"]}, r"teacher\.options\.teachers"),
        ({"ensemble": ["MODEL", "OTHER"]}, "have not the same tokenizer.* Use models of one family"),
        (
            {"ensemble": ["MODEL", "MODEL"], "weights": [1]},
            r"teacher\.options\.weights is \[1\.0\]: there are 2 models",
        ),
        ({"ensemble": ["MODEL", "MODEL"], "weights": [1, 0]}, r"teacher\.options\.weights"),
        ({"ensemble": ["MODEL", "MODEL"], "weight": [1, 1]}, "Did you mean 'weights'"),
        ({"ensemble": ["MODEL", {"kind": "vllm", "model": "MODEL"}]}, "in this process.*stillhouse datasets ensemble"),
        (["MODEL", "MODEL"], "teachers: it has the models of an ensemble"),
    ],
)
def test_what_cannot_be_averaged_is_refused(
    teachers: Any, words: str, tiny_recipe: MakeRecipe, tiny_model: Path, tmp_path: Path
) -> None:
    names = {"MODEL": str(tiny_model), "OTHER": str(make_tiny_model(tmp_path / "other", merges=3))}

    def filled(value: Any) -> Any:
        if isinstance(value, dict):
            return {key: filled(one) for key, one in value.items()}
        if isinstance(value, list):
            return [filled(one) for one in value]
        return names.get(value, value)

    raw = tiny_recipe().model_dump(mode="json", by_alias=True)
    del raw["teacher"]
    with pytest.raises(RecipeError, match=words):
        check_plan(recipe_from({**raw, "teachers": filled(teachers)}, "test"))


def test_a_teacher_beside_the_ensemble_is_refused(tiny_recipe: MakeRecipe) -> None:
    raw = tiny_recipe().model_dump(mode="json", by_alias=True)
    with pytest.raises(RecipeError, match="remove `teacher`"):
        recipe_from({**raw, "teachers": {"ensemble": ["a", "b"]}}, "test")

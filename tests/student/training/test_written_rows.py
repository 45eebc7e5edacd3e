"""What the loss `minillm` is given of rows that the student wrote, against a forward pass of each row alone."""

import asyncio
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from stillhouse.dataset.store import open_dataset
from stillhouse.errors import RecipeError
from stillhouse.labelling.engine import label
from stillhouse.models.layout import completion_logits, make_token_batch
from stillhouse.models.load import load_language_model
from stillhouse.stages.checks import check_distill
from stillhouse.stages.stages import distill_students
from stillhouse.student.data.batches import collator, soft_labels_of
from stillhouse.student.data.examples import open_rows
from stillhouse.student.losses import minillm
from stillhouse.student.training.written_rows import WrittenRows, was_written_by_student
from tests.conftest import MakeRecipe
from tests.encoder_decoders import tiny_t5

LOSS = {"kind": "minillm", "cross_entropy_weight": 0.0}
SAMPLING = {"temperature": 1.0, "max_tokens": 6}


def rounds(make: MakeRecipe, tmp_path: Path, kind: str, **settings: Any) -> Any:
    parts: dict[str, Any] = {"evaluate": {"baselines": []}}
    if kind == "t5":
        parts["teacher"] = {
            "kind": "transformers",
            "model": str(tiny_t5(tmp_path / "t5")),
            "options": {"batch_size": 4},
        }
        parts["student"] = {
            "init": {"from": "teacher", "layers": 1, "choose": "even"},
            "train": {"num_train_epochs": 1, "per_device_train_batch_size": 4},
        }
    on_policy = {"rounds": 1, "prompts": 4, "sampling": SAMPLING, "loss": LOSS, **settings}
    return make(on_policy=on_policy, **parts)


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["causal", "t5"])
@pytest.mark.parametrize("share", [0.0, 0.2])
def test_each_row_has_its_own_values(kind: str, share: float, tiny_recipe: MakeRecipe, tmp_path: Path) -> None:
    recipe = rounds(tiny_recipe, tmp_path, kind, teacher_share=share)
    asyncio.run(label(recipe))
    *_, first, last = distill_students(recipe)
    assert last.card.variant == "on-policy"
    scored = open_dataset(Path(recipe.dataset.root) / "words-rollouts")
    assert was_written_by_student(scored)
    assert scored.manifest.parents == ("words/v001",)
    origin = scored.manifest.recipe["prompts"]["written_by"]
    assert (origin["teacher_share"], len(origin["student"])) == (share, 64)
    lm = load_language_model(Path(first.folder))
    plain = open_rows(scored, "train", lm, soft=True, by_text=False)
    rows = WrittenRows(plain, scored, lm, minillm.Options(), head_chunk=3, max_length=1000)
    table = scored.to_table("train").to_pylist()
    examples = [rows.example(0, row) for row in range(len(table))]
    for row, example in zip(table, examples, strict=True):
        batch = make_token_batch([example.prompt.tolist()], [example.completion.tolist()], lm.pad_id, lm.start_id)
        with torch.inference_mode():
            logits = completion_logits(lm.model, batch).log_softmax(dim=-1)
        own = logits.gather(-1, batch.targets.unsqueeze(-1)).squeeze(-1).numpy()
        assert example.written is not None
        np.testing.assert_allclose(example.written.logprobs, own, rtol=1e-4, atol=1e-5)
        teacher = np.array(row["completion_logprobs"], dtype=np.float64)
        expected = minillm.advantages(teacher, own.astype(np.float64), teacher_share=share)
        np.testing.assert_allclose(example.written.advantages, expected, rtol=1e-3, atol=1e-4)
    short = WrittenRows(plain, scored, lm, minillm.Options(), head_chunk=3, max_length=2)
    assert short.example(0, 0).written is None  # too long to be learnt
    labels = soft_labels_of(collator(lm.pad_id, lm.start_id)([examples[0], short.example(0, 1), examples[2]]))
    assert labels is not None and labels.written is not None
    lengths = [len(one.completion) for one in examples[:3]]
    middle = slice(lengths[0], lengths[0] + lengths[1])
    assert not labels.written[middle].advantages.any()
    torch.testing.assert_close(
        labels.written[slice(sum(lengths[:2]), None)].logprobs, torch.from_numpy(examples[2].written.logprobs)
    )


STUDENT = {"init": {"from": "teacher", "layers": 2, "choose": "even"}, "loss": LOSS}


def test_the_teachers_rows_alone_are_refused(tiny_recipe: MakeRecipe) -> None:
    with pytest.raises(RecipeError, match=r"student\.loss\.kind is 'minillm': .* Set on_policy\.loss\.kind"):
        tiny_recipe(student=STUDENT)
    recipe = tiny_recipe(student={**STUDENT, "data": [{"dataset": "words"}]})
    asyncio.run(label(recipe))
    with pytest.raises(RecipeError, match=r"student\.loss\.kind is 'minillm': .* no student wrote .* words/v001"):
        distill_students(recipe, only="white-box")


def test_a_live_teacher_is_refused_before_anything_is_trained(tiny_recipe: MakeRecipe) -> None:
    student = {**STUDENT, "loss": {"kind": "reverse-kl"}, "labels": "live"}
    recipe = tiny_recipe(student=student, on_policy={"loss": LOSS, "sampling": SAMPLING}, evaluate={"baselines": []})
    with pytest.raises(RecipeError, match=r"on_policy\.loss\.kind is 'minillm': student\.labels is 'live'"):
        check_distill(recipe)


@pytest.mark.parametrize(
    ("settings", "words"),
    [
        ({"sampling": {"temperature": 0.7, "max_tokens": 6}}, r"sampling\.temperature is 0\.7: loss\.kind is minillm"),
        ({"sampling": {**SAMPLING, "top_p": 0.9}}, r"sampling\.top_p is 0\.9: "),
        ({"teacher_share": 0.2, "writer": {"kind": "vllm"}}, r"on_policy\.teacher_share is 0\.2: a server"),
        ({"teacher_share": 1.0}, r"on_policy\.teacher_share is 1\.0"),
    ],
)
def test_what_its_weights_do_not_hold_for_is_refused(
    settings: dict[str, Any], words: str, tiny_recipe: MakeRecipe, tmp_path: Path
) -> None:
    with pytest.raises(RecipeError, match=words):
        rounds(tiny_recipe, tmp_path, "causal", **settings)


def test_a_teacher_that_is_not_in_this_process_is_not_mixed_in(tiny_recipe: MakeRecipe, tmp_path: Path) -> None:
    init = {"from": "teacher", "layers": 2, "choose": "even", "vocabulary": "used"}
    recipe = tiny_recipe(
        student={"init": init}, on_policy={"teacher_share": 0.2, "sampling": SAMPLING}, evaluate={"baselines": []}
    )
    with pytest.raises(RecipeError, match=r"on_policy\.teacher_share is 0\.2: student\.init\.vocabulary is 'used'"):
        check_distill(recipe)

"""Students of the teacher's most important parts, from the dataset to the report."""

from __future__ import annotations

import asyncio
import json
from pathlib import Path
from typing import Any

import pytest

from stillhouse.dataset.store import Dataset
from stillhouse.errors import DatasetMissing, RecipeError
from stillhouse.evaluation.evaluate import evaluate
from stillhouse.labelling.engine import label
from stillhouse.recipe.recipe import Recipe, recipe_from
from stillhouse.recipe.student import StudentSettings
from stillhouse.stages.finetune import gold_dataset
from stillhouse.stages.stages import distill_stage
from stillhouse.student.finished.folder import StudentFolder, Variant, folder_for, student_folder
from stillhouse.student.start import choice, parts
from stillhouse.student.start.importance import greedy
from stillhouse.student.start.record import Start, read_start
from stillhouse.student.training.train import distill
from stillhouse.student.training.untrained import prepare_untrained
from tests.conftest import MakeRecipe
from tests.encoder_decoders import tiny_t5

pytestmark = pytest.mark.usefixtures("one_thread")
TWO = {"from": "teacher", "layers": 2}


def of(recipe: Recipe, init: dict[str, Any], **settings: Any) -> tuple[Recipe, StudentSettings]:
    """The recipe with another student."""
    given = recipe.model_dump(mode="json", by_alias=True)
    given["student"] |= {"init": init, **settings}
    other = recipe_from(given, "test")
    assert other.student is not None
    return other, other.student


def start_of(place: StudentFolder | Path) -> Start:
    start = read_start(place if isinstance(place, Path) else place.path)
    assert start is not None
    return start


def untrained(recipe: Recipe, init: dict[str, Any], dataset: Dataset) -> Start:
    return start_of(prepare_untrained(*of(recipe, init), dataset))


def forbid(monkeypatch: pytest.MonkeyPatch) -> None:
    """Measuring anything fails."""

    def measured(*_: Any) -> Any:
        raise AssertionError("measured again")

    monkeypatch.setattr(parts, "_measured", measured)


Labelled = tuple[Recipe, StudentSettings, Dataset]


def test_a_student_of_the_layers_that_matter_most(labelled: Labelled, monkeypatch: pytest.MonkeyPatch) -> None:
    recipe, _, dataset = labelled
    swift, student = of(recipe, TWO)
    card = distill(swift, student, dataset)
    base = Path(swift.students) / swift.name
    start = start_of(base / "white-box")
    assert start_of(base / "untrained") == start
    (stack,) = start.stacks
    rows = dataset.manifest.rows["train"]  # fewer than the 64 of `rows`
    assert (start.dataset, start.rows, stack.method, stack.depth) == (
        dataset.manifest.label,
        rows,
        "block-influence",
        4,
    )
    assert len(stack.kept) == 2
    assert len(stack.scores) == 4
    assert json.loads((base / "white-box/config.json").read_text())["num_hidden_layers"] == 2
    forbid(monkeypatch)
    again = student_folder(swift, student, "white-box", dataset)
    assert distill(swift, student, dataset) == card  # it is there
    assert again.key == card.key
    other, settings = of(swift, {**TWO, "layers": 3}, loss={"temperature": 1.0})
    distill(other, settings, dataset)
    assert set(stack.kept) < set(start_of(base / "white-box").stacks[0].kept)


def test_the_same_recipe_gives_the_same_layers_elsewhere(labelled: Labelled, tmp_path: Path) -> None:
    recipe, _, dataset = labelled
    elsewhere = recipe.model_copy(update={"students": str(tmp_path / "elsewhere")})
    assert untrained(recipe, TWO, dataset) == untrained(elsewhere, TWO, dataset)
    keys = {student_folder(*of(one, TWO), "white-box", dataset).key for one in (recipe, elsewhere)}
    assert len(keys) == 1


def test_greedy_removal_goes_on_after_a_kill(
    labelled: Labelled, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    recipe, _, dataset = labelled
    one = {"from": "teacher", "layers": 1, "choose": "greedy"}
    unbroken = untrained(recipe.model_copy(update={"students": str(tmp_path / "unbroken")}), one, dataset)
    measured = []

    def noted(*given: Any) -> Any:
        measured.append(len(given[3].order))  # the layers that were removed before
        return greedy(*given)

    def killed(activity: str, done: int, total: int) -> None:
        if total == 3:  # layers to remove; leave-one-out counts rows and layers
            raise KeyboardInterrupt

    monkeypatch.setattr(choice, "greedy", noted)
    with pytest.raises(KeyboardInterrupt):
        prepare_untrained(*of(recipe, one), dataset, killed)
    monkeypatch.setattr(choice, "leave_one_out", None)  # that is known
    assert untrained(recipe, one, dataset) == unbroken
    assert measured == [0, 1]


@pytest.mark.parametrize("damage", [b"", b"{", b'{"leave_one_out": 3}', b"\xff\x00"])
def test_damaged_measurements_count_for_nothing(labelled: Labelled, damage: bytes) -> None:
    recipe, _, dataset = labelled
    init = {**TWO, "width": {"feed_forward": 0.5}}
    expected = untrained(recipe, init, dataset)
    (known,) = Path(recipe.students).glob(".importance/*")
    before = {file.name: file.read_bytes() for file in known.glob("[!.]*")}
    assert before.keys() == {"layers.json", "widths.npz"}
    for name in before:
        (known / name).write_bytes(damage)
    assert untrained(recipe, {**init, "layers": 3}, dataset).widths == expected.widths
    assert untrained(recipe, init, dataset) == expected
    for name in before:
        assert (known / name).read_bytes() not in (damage, b"")


def test_activations_are_measured_once(labelled: Labelled, monkeypatch: pytest.MonkeyPatch) -> None:
    recipe, _, dataset = labelled
    untrained(recipe, {"from": "teacher", "width": {"feed_forward": 0.5}}, dataset)
    forbid(monkeypatch)
    start = untrained(recipe, {"from": "teacher", "width": {"feed_forward": 0.25, "heads": 2, "hidden": 16}}, dataset)
    assert start.widths == {"feed_forward": (16, 64), "heads": (2, 4), "hidden": (16, 32)}
    assert start.stacks == ()


def test_layers_widths_and_vocabulary_together(labelled: Labelled) -> None:
    recipe, _, dataset = labelled
    init = {**TWO, "width": {"feed_forward": 0.5, "heads": 2, "hidden": 16}, "vocabulary": "used"}
    small, student = of(recipe, init)
    card = distill(small, student, dataset)
    start = start_of(Path(small.students) / small.name / "white-box")
    assert start.vocabulary is not None
    assert len(start.stacks[0].kept) == 2
    assert start.widths["hidden"] == (16, 32)
    for baseline in small.evaluate.baselines:
        if baseline != "untrained":
            distill(small, student.model_copy(update={"mode": baseline}), dataset)
    models = evaluate(small, student, dataset).report.models
    assert models[-1].parameters == card.parameters


def test_layers_of_both_stacks_of_an_encoder_decoder(tiny_recipe: MakeRecipe, tmp_path: Path) -> None:
    model = tiny_t5(tmp_path / "t5", layers=3, decoder_layers=3)
    recipe = tiny_recipe(
        teacher={"kind": "transformers", "model": str(model), "options": {"batch_size": 4}},
        student={
            "init": {"from": "teacher", "layers": {"encoder": 2, "decoder": 1}},
            "train": {"num_train_epochs": 1, "per_device_train_batch_size": 4},
        },
        label={"mode": "score", "soft": {"k": 16}},
    )
    assert recipe.student is not None
    done = distill_stage(recipe, recipe.student, asyncio.run(label(recipe)).dataset)
    kept = {one.stack: (len(one.kept), one.depth, one.method) for one in start_of(Path(done.folder)).stacks}
    assert kept == {"encoder": (2, 3, "block-influence"), "decoder": (1, 3, "block-influence")}


def test_a_gold_student_s_layers_are_measured_on_the_teacher_s_completions(labelled: Labelled) -> None:
    recipe, _, dataset = labelled
    own, student = of(recipe, TWO, mode="gold")
    distill(own, student, gold_dataset(own))
    start = start_of(Path(own.students) / own.name / "gold")
    assert start == untrained(recipe, TWO, dataset)
    assert (start.dataset, start.stacks[0].method) == (dataset.manifest.label, "block-influence")


def test_a_start_without_its_dataset_says_why_and_which_command_makes_it(tiny_recipe: MakeRecipe) -> None:
    for init, words in (
        (TWO, r"choose is 'importance'.*set it to 'even'"),
        ({"from": "teacher", "width": {"heads": 2}}, r"student\.init\.width: widths .*remove it"),
        ({"from": "teacher", "vocabulary": "used"}, r"vocabulary is 'used'.*set it to 'all'"),
    ):
        with pytest.raises(DatasetMissing, match=words + r".* to start without a dataset\.$") as caught:
            prepare_untrained(*of(tiny_recipe(), init))
        assert "`stillhouse label`" in str(caught.value)
    assert not Path(tiny_recipe().students).exists()


@pytest.mark.parametrize(
    ("init", "words"),
    [
        ({**TWO, "rows": 0}, "student.init.rows is 0: it must be greater than or equal to 1"),
        ({**TWO, "choose": "evn"}, "student.init.choose is 'evn': it must be 'importance', 'greedy', "),
        (
            {"from": "teacher", "layers": [0, 1], "choose": "greedy"},
            "choose is 'greedy': it has no effect",
        ),
        ({"from": "teacher", "layers": 0.5}, "student.init.layers is 0.5: it is neither a number"),
        (
            {"from": "teacher", "width": {"heads": 1.5}},
            "student.init.width.heads is 1.5: it is out of range. Give a whole number",
        ),
        ({"from": "teacher", "width": {"heads": True}}, "student.init.width.heads is true: it is not a number"),
        ({"model": "a", "width": {"heads": 2}}, "student.init.width: it applies only with `from: teacher`. Give both"),
    ],
)
def test_wrong_settings_of_a_start(tiny_recipe: MakeRecipe, init: dict[str, Any], words: str) -> None:
    with pytest.raises(RecipeError) as raised:
        of(tiny_recipe(), init)
    assert words in str(raised.value)
    assert str(raised.value).count("student.init") == 1  # one message


KEYS = {  # of the version before layers were chosen by importance: untrained, white-box, gold
    "listed": (
        {"from": "teacher", "layers": [0, 3]},
        ("96da4f3f93d464b1c66e72a507fa3854", "32889248e97160b52297da90d158e54c", "c0489486b1ff44275054ab60faa6a6cf"),
    ),
    "evenly spaced, as every number was": (
        {"from": "teacher", "layers": 2, "choose": "even"},
        ("2114c86a356d3b6e3894cf6a82a87950", "c5a1bacf9b10d0f4a8d53620fb7a6654", "34eaae59eeeae407119fe9c2e1155e45"),
    ),
    "of two stacks": (
        {"from": "teacher", "layers": {"encoder": [0], "decoder": 2}, "choose": "even"},
        ("4fc768a57bacc2d4d69f3d60110fdca6", "eacb66093b4c95dfa0378926c7af1c7a", "aaeda43d549a0096da7730a9930657a1"),
    ),
    "a model": (
        {"model": "a-hub/student", "revision": "abc"},
        ("4bb47336fc48e05fb9b1fc296a31b321", "5e9ed1318c48f642e1715201d45478ec", "e2195ec31eecf07f10e34ee9b60ba206"),
    ),
    "fresh weights": (
        {"config": {"hidden_size": 16, "num_attention_heads": 2}},
        ("99975f9f8b733737c6d2c9c8dba07f40", "32210fa9ada060412a832e3c87c35f2b", "f26da7b58a77d16fb33706d1243ff497"),
    ),
}


@pytest.mark.parametrize("kind", KEYS)
def test_students_of_older_versions_stay_valid(kind: str, tmp_path: Path) -> None:
    init, keys = KEYS[kind]
    config = {"model_type": "llama", "num_hidden_layers": 4, "vocab_size": 8}
    tokenizer = {"model": {"type": "BPE", "vocab": {"a": 0, "b": 1}, "merges": []}}
    (tmp_path / "config.json").write_text(json.dumps(config))
    (tmp_path / "tokenizer.json").write_text(json.dumps(tokenizer))
    (tmp_path / "model.safetensors").write_bytes(b"weights")
    recipe = recipe_from(
        {
            "name": "r",
            "prompts": {"source": "p.jsonl"},
            "teacher": {"kind": "transformers", "model": str(tmp_path)},
            "label": {"soft": {"k": 8}},
            "dataset": {"name": "d"},
            "student": {"init": init},
        },
        "r",
    )
    assert recipe.student is not None
    variants: tuple[Variant, ...] = ("untrained", "white-box", "gold")
    for variant, key in zip(variants, keys, strict=True):
        rows = [] if variant == "untrained" else ["a" * 64]
        assert folder_for(recipe, recipe.student, variant, rows).key == key

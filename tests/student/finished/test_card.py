"""The model card: what the hub takes, who taught the student by which loss, and never a figure of another evaluation."""

import dataclasses
import re
from pathlib import Path
from typing import Any

import pytest
import yaml
from huggingface_hub import ModelCard

from stillhouse.dataset.store import Dataset
from stillhouse.recipe.recipe import Recipe
from stillhouse.recipe.student import LossSettings, StudentSettings
from stillhouse.recipe.student_init import InitSettings
from stillhouse.student.finished.card import CardFacts, Figures, card_facts, formula, render_card, write_cards
from stillhouse.student.finished.folder import Int8Copy, Step, StudentCard, read_card, student_folder
from stillhouse.student.finished.quantize import quantize
from stillhouse.student.start.descriptions import start_in_words
from stillhouse.student.start.record import Start, read_start
from stillhouse.student.training.train import distill
from stillhouse.student.training.untrained import prepare_untrained
from tests.conftest import MakeRecipe, make_tiny_model
from tests.encoder_decoders import tiny_bart, tiny_t5

Labelled = tuple[Recipe, StudentSettings, Dataset]

FIGURES = Figures(
    key="3f2a" * 16,
    created_at="2026-01-02T00:00:00+00:00",
    machine="x86_64, 2 processors",
    table=(
        ("model", "tokens/s", "KL/token"),
        ("teacher", "20.0 [18.0, 22.0]", "0.00"),
        ("white-box student", "52.0 [50.0, 54.0]", "1.90 [1.80, 2.00]"),
        ("white-box student, int8", "31.0 [30.0, 32.0]", "1.91 [1.81, 2.01]"),
    ),
    notes=("Quality is measured on 50 held-out completions.",),
)


def made_card(**changes: Any) -> StudentCard:
    card = StudentCard(
        recipe="quick",
        variant="white-box",
        key="k",
        dataset="words/v001",
        parameters=63_713_088,
        megabytes=127.43,
        steps=50,
        kept_step=None,
        training={"num_train_epochs": 2.0, "learning_rate": 1e-3, "bf16": False, "optim": "adamw_torch"},
        rows=9,
        rows_too_long=2,
        seconds=77.0,
        created_at="2026-01-01T00:00:00+00:00",
        versions={"stillhouse": "0.1.0", "torch": "2.13.0"},
        log=(
            Step(step=25, eval_loss=3.25, eval_kl=1.5),
            Step(step=50, eval_loss=2.75, eval_kl=1.25),
            Step(step=50, loss=2.0),
        ),
    )
    return card.model_copy(update=changes)


@pytest.fixture
def facts(labelled: Labelled) -> CardFacts:
    _, student, dataset = labelled
    return CardFacts(
        card=made_card(),
        teacher=dataset.manifest.teacher,
        student=student,
        loss=student.loss,
        manifest=dataset.manifest.model_copy(update={"licence": "CC-BY-4.0"}),
        base_models=("owner/teacher",),
        prompts_from="owner/prompts",
        chat=True,
    )


def front_of(text: str) -> dict[str, Any]:
    """The front matter, as the hub's own library and as plain YAML read it."""
    front: dict[str, Any] = ModelCard(text).data.to_dict()
    assert yaml.safe_load(text.split("---\n")[1]) == front
    return front


def test_the_front_matter_is_what_the_hub_takes(facts: CardFacts) -> None:
    assert front_of(render_card(facts)) == {
        "base_model": ["owner/teacher"],
        "datasets": ["owner/prompts"],
        "license": "cc-by-4.0",
        "library_name": "transformers",
        "pipeline_tag": "text-generation",
        "tags": ["distillation", "stillhouse", "white-box"],
    }
    assert facts.manifest is not None
    unknown = dataclasses.replace(
        facts, base_models=(), prompts_from=None, manifest=facts.manifest.model_copy(update={"licence": None})
    )
    assert front_of(render_card(unknown)).keys() == {"library_name", "pipeline_tag", "tags"}


def test_the_body_says_where_the_student_comes_from(facts: CardFacts) -> None:
    text = render_card(facts)
    assert facts.teacher.content_sha256 is not None
    assert f"kind transformers, weights {facts.teacher.content_sha256[:12]}…" in text
    assert "| Dataset | words/v001, licence CC-BY-4.0 |" in text
    assert "9 learnt from (2 more were too long), 3 held out" in text
    assert "2 of the teacher's layers, evenly spaced" in text
    assert "L = 1 * 2^2 * forward-kl(teacher / 2, student / 2) + 1 * cross-entropy(completion, student)" in text
    assert "| learning_rate | 0.001 |" in text
    assert "bf16" not in text
    assert "63.7 million parameters" in text
    assert "63,713,088 parameters, 127 MB on disk" in text
    assert "stillhouse 0.1.0, torch 2.13.0" in text
    assert "## Limitations" in text


@pytest.mark.parametrize(("kept", "loss", "kl"), [(None, "2.7500", "1.2500"), (25, "3.2500", "1.5000")])
def test_held_out_figures_are_those_of_the_student_that_was_kept(
    facts: CardFacts, kept: int | None, loss: str, kl: str
) -> None:
    text = render_card(dataclasses.replace(facts, card=made_card(kept_step=kept)))
    assert f"after step {kept or 50}, in nats per token" in text
    assert f"| loss, as above | {loss} |" in text
    assert f"temperature 1 | {kl} |" in text


def test_a_student_that_is_not_evaluated_claims_no_figures(facts: CardFacts) -> None:
    assert "It has not been evaluated." in render_card(facts)
    text = render_card(dataclasses.replace(facts, figures=FIGURES))
    assert "It has not been evaluated." not in text
    assert "evaluation 3f2a3f2a3f2a" in text
    assert "| **white-box student** | 52.0 [50.0, 54.0] | 1.90 [1.80, 2.00] |" in text
    assert "| teacher | 20.0 [18.0, 22.0] | 0.00 |" in text
    assert "- Quality is measured on 50 held-out completions." in text


def test_a_broken_student_s_card_begins_with_what_is_wrong(facts: CardFacts) -> None:
    said = "This student is broken: 38 % of its answers repeat themselves (its teacher: 2 %)."
    looks = (
        ("model", "repeat themselves"),
        ("teacher", "2.0 % [0.0, 5.0]"),
        ("white-box student", "38.0 % [35.0, 41.0]"),
    )
    figures = dataclasses.replace(FIGURES, answers=looks, warnings={"white-box student": said})
    card = made_card(int8=Int8Copy(parameters=35_389_440, megabytes=92.35, torchao="0.18.0"))
    broken = dataclasses.replace(facts, card=card, figures=figures)
    text = render_card(broken)
    assert f"# quick: white-box student\n\n> **Warning.** {said}\n\nA causal language model" in text
    assert "| **white-box student** | 38.0 % [35.0, 41.0] |" in text
    assert "Statistics of the answers to held-out prompts:\n\n| model | repeat themselves |\n| --- | --- |\n" in text
    assert "Warning" not in render_card(broken, int8=True)  # of the copy nothing is wrong
    assert "Warning" not in render_card(dataclasses.replace(broken, figures=FIGURES))
    untrained = dataclasses.replace(figures, warnings={"untrained student": said})
    start = dataclasses.replace(facts, card=made_card(variant="untrained"), figures=untrained)
    assert "Warning" not in render_card(start)  # it has learnt nothing, and its card says so


def test_the_card_of_the_copy_is_about_the_copy(facts: CardFacts) -> None:
    card = made_card(int8=Int8Copy(parameters=35_389_440, megabytes=92.35, torchao="0.18.0"))
    with_copy = dataclasses.replace(facts, card=card, figures=FIGURES)
    text = render_card(with_copy, int8=True)
    assert front_of(text)["tags"][-2:] == ["int8", "torchao"]
    assert "35.4 million of its parameters" in text
    assert "92 MB on disk instead of 127 MB" in text
    assert "| **white-box student, int8** |" in text
    assert "pip install torchao" in text
    assert "pip install torchao" not in render_card(with_copy)
    assert "torchao 0.18.0" not in render_card(with_copy)


def test_what_others_wrote_cannot_break_a_table(facts: CardFacts) -> None:
    odd = dataclasses.replace(facts.teacher, model="a|b\n<script>`c`")
    text = render_card(dataclasses.replace(facts, teacher=odd))
    assert "<script>" not in text
    for line in text.splitlines():
        if line.startswith("| Teacher"):
            assert len(re.findall(r"(?<!\\)\|", line)) == 3


@pytest.mark.parametrize(
    ("settings", "variant", "expected"),
    [
        ({}, "white-box", "L = 1 * 1^2 * forward-kl(teacher / 1, student / 1) + 1 * cross-entropy(completion, student)"),
        ({"temperature": 2.5, "weight": 0.5, "cross_entropy_weight": 0, "kind": "reverse-kl"}, "white-box",
         "L = 0.5 * 2.5^2 * reverse-kl(teacher / 2.5, student / 2.5)"),
        ({"weight": 0, "cross_entropy_weight": 2}, "white-box", "L = 2 * cross-entropy(completion, student)"),
        ({"temperature": 2}, "black-box", "L = cross-entropy(completion, student)"),
    ],
)  # fmt: skip
def test_the_formula_has_the_numbers_of_the_recipe(settings: dict[str, Any], variant: str, expected: str) -> None:
    assert formula(LossSettings.model_validate(settings), variant) == expected


@pytest.mark.parametrize(
    ("init", "expected"),
    [
        ({"from": "teacher", "layers": [0, 5, 11]}, "the teacher's layers 0, 5, 11, with"),
        ({"from": "teacher", "layers": 3}, "3 of the teacher's layers, chosen by importance, with"),
        (
            {"from": "teacher", "layers": 3, "choose": "greedy"},
            "3 of the teacher's layers, chosen by greedy removal, with",
        ),
        ({"from": "teacher", "layers": 3, "choose": "even"}, "3 of the teacher's layers, evenly spaced, with"),
        (
            {"from": "teacher", "width": {"heads": 2}},
            "all of the teacher's layers, with its embeddings, norms and head",
        ),
        ({"model": "/home/me/models/small"}, "the model `small`"),
        ({"model": "owner/small", "revision": "abc"}, "the model `owner/small`, revision abc"),
        ({"config": {"hidden_size": 64}}, "random weights, the teacher's config, changed: hidden_size 64"),
        ({"config": {"model_type": "llama"}}, "random weights, a llama of its own config: defaults"),
    ],
)
def test_every_start_is_told(init: dict[str, Any], expected: str) -> None:
    assert start_in_words(InitSettings.model_validate(init)).startswith(expected)


@pytest.mark.parametrize(
    ("layers", "expected"),
    [
        (2, "2 of the teacher's encoder layers, evenly spaced, and 2 of the teacher's decoder layers, evenly spaced, with"),
        ({"encoder": 3, "decoder": [0, 2]},
         "3 of the teacher's encoder layers, evenly spaced, and the teacher's decoder layers 0, 2, with its embeddings"),
        ({"decoder": 1}, "all of the teacher's encoder layers, and 1 of the teacher's decoder layers, evenly spaced, with"),
    ],
)  # fmt: skip
def test_the_start_of_both_stacks_is_told(layers: Any, expected: str) -> None:
    init = InitSettings.model_validate({"from": "teacher", "layers": layers, "choose": "even"})
    assert start_in_words(init, encoder_decoder=True).startswith(expected)


LAYERS = {"stack": "model", "depth": 6, "kept": [0, 2, 5]}
ROWS = {"teacher": "t", "dataset": "words/v001", "rows": 64}


@pytest.mark.parametrize(
    ("init", "start", "expected"),
    [
        ({"layers": 3}, {"stacks": [LAYERS | {"method": "leave-one-out"}]},
         "3 of the teacher's 6 layers (0, 2, 5), those whose removal costs most (leave-one-out on 64 rows of words/v001), "
         "with its embeddings, norms and head"),
        ({"layers": 3}, {"stacks": [LAYERS | {"method": "greedy"}], "rows": 1},
         "3 of the teacher's 6 layers (0, 2, 5), chosen by greedy removal on 1 row of words/v001, with its embeddings, "
         "norms and head"),
        ({"layers": 3}, {"stacks": [LAYERS | {"method": "block-influence"}]},
         "3 of the teacher's 6 layers (0, 2, 5), those that change their input most (block influence on 64 rows of "
         "words/v001), with its embeddings, norms and head"),
        ({"layers": 3, "choose": "even"}, {"stacks": [LAYERS]},
         "3 of the teacher's 6 layers (0, 2, 5), evenly spaced, with its embeddings, norms and head"),
        ({"layers": [0, 2, 5]}, {"stacks": [LAYERS], "vocabulary": [8824, 49152]},
         "3 of the teacher's 6 layers (0, 2, 5), with its embeddings, norms and head, and 8,824 of its 49,152 tokens"),
        ({"layers": 6}, {"stacks": [LAYERS | {"kept": [0, 1, 2, 3, 4, 5], "method": "greedy"}]},
         "all of the teacher's 6 layers, with its embeddings, norms and head"),
        ({"width": {"feed_forward": 0.5, "heads": 6, "hidden": 1.0}, "vocabulary": "used"},
         {"widths": {"feed_forward": [1024, 1536], "heads": [6, 9], "hidden": [576, 576]}, "vocabulary": [8824, 49152]},
         "all of the teacher's layers, with its embeddings, norms and head, 1,024 of its 1,536 feed-forward neurons, 6 of "
         "its 9 attention heads, and 8,824 of its 49,152 tokens"),
        ({"from": None, "model": "owner/small", "vocabulary": "used"}, {"vocabulary": [8, 10]},
         "the model `owner/small`, with 8 of its 10 tokens"),
    ],
)  # fmt: skip
def test_a_start_that_is_on_record_is_told_in_full(init: dict[str, Any], start: dict[str, Any], expected: str) -> None:
    settings = InitSettings.model_validate({"from": "teacher"} | init)
    assert start_in_words(settings, start=Start.model_validate(ROWS | start)) == expected


def test_both_stacks_of_a_start_that_is_on_record_are_told() -> None:
    init = InitSettings.model_validate({"from": "teacher", "layers": {"encoder": 1, "decoder": [0, 1]}})
    encoder = {"stack": "encoder", "depth": 4, "kept": [3], "method": "leave-one-out", "scores": [1, 2, 3, 4]}
    decoder = {"stack": "decoder", "depth": 3, "kept": [0, 1]}
    start = Start.model_validate(ROWS | {"stacks": [encoder, decoder]})
    assert start_in_words(init, encoder_decoder=True, start=start) == (
        "1 of the teacher's 4 encoder layers (3), those whose removal costs most (leave-one-out on 64 rows of words/v001), "
        "and 2 of the teacher's 3 decoder layers (0, 1), with its embeddings, norms and head"
    )


def test_an_encoder_decoder_is_told_of_as_one(facts: CardFacts) -> None:
    causal = render_card(facts)
    assert "A causal language model of 63.7 million parameters" in causal
    assert "AutoModelForSeq2SeqLM" not in causal
    text = render_card(dataclasses.replace(facts, encoder_decoder=True, chat=False, task_prefix='say "it": '))
    assert front_of(text)["pipeline_tag"] == "text2text-generation"
    assert "An encoder-decoder of 63.7 million parameters" in text
    assert r"""inputs = tokenizer("say \"it\": Once upon a time", return_tensors="pt")""" in text
    assert "apply_chat_template" not in text


def run_sample(folder: Path) -> str:
    """Run the code of a card as a reader of it would, and give what it prints."""
    (code,) = re.findall(r"```python\n(.*?)```", (folder / "README.md").read_text(encoding="utf-8"), flags=re.DOTALL)
    printed: list[str] = []
    exec(code.replace("path/to/this/folder", str(folder)), {"print": printed.append})
    return printed[0]


@pytest.mark.parametrize("kind", ["chat", "text", "t5", "bart"])
def test_the_code_of_a_card_runs(tiny_recipe: MakeRecipe, tmp_path: Path, kind: str) -> None:
    """Also that of the int8 copy, in a folder that no code of ours loads."""
    if kind == "t5":
        teacher = tiny_t5(tmp_path / "teacher")
    elif kind == "bart":
        teacher = tiny_bart(tmp_path / "teacher")
    else:
        teacher = make_tiny_model(tmp_path / "teacher", template=kind == "chat")
    parts = tiny_recipe().model_dump(mode="json", by_alias=True)
    recipe = tiny_recipe(teacher=parts["teacher"] | {"model": str(teacher), "task_prefix": "say: "})
    assert recipe.student is not None
    place = prepare_untrained(recipe, recipe.student)
    card = place.trained_card()
    assert card is not None
    copy = quantize(place.path, place.int8)
    write_cards(place.path, card.model_copy(update={"int8": copy}), recipe, None)
    for folder in (place.path, place.int8):
        text = run_sample(folder)
        assert isinstance(text, str)
        assert ("Seq2Seq" in (folder / "README.md").read_text(encoding="utf-8")) == (kind in {"t5", "bart"})


def test_only_names_of_the_hub_are_linked(labelled: Labelled, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    recipe, student, dataset = labelled
    folder = prepare_untrained(recipe, student).path

    def named(teacher: str, source: str, kind: str = "transformers", **init: Any) -> CardFacts:
        parts = recipe.model_dump(by_alias=True)
        parts["teacher"] |= {"model": teacher, "kind": kind}
        parts["prompts"] |= {"source": source}
        parts["student"]["init"] = init or {"from": "teacher", "layers": 2}
        return card_facts(folder, made_card(), Recipe.model_validate(parts), dataset.manifest)

    hub = named("owner/teacher", "owner/prompts")
    assert (hub.base_models, hub.prompts_from) == (("owner/teacher",), "owner/prompts")
    both = named("owner/teacher", "prompts/words.jsonl", model="owner/small")
    assert (both.base_models, both.prompts_from) == (("owner/small", "owner/teacher"), None)
    assert named("an/api-model", "a/b", kind="openai", model="owner/small").base_models == ("owner/small",)
    monkeypatch.chdir(tmp_path)
    Path("models/teacher").mkdir(parents=True)
    assert named("models/teacher", "./x/y.parquet").base_models == ()


def test_students_lie_with_their_card_and_recipe(labelled: Labelled) -> None:
    recipe, student, dataset = labelled
    card = distill(recipe, student, dataset)
    for variant in ("white-box", "untrained"):
        folder = Path(recipe.students) / recipe.name / variant
        text = (folder / "README.md").read_text(encoding="utf-8")
        start = read_start(folder)
        assert start is not None
        (stack,) = start.stacks
        kept = ", ".join(map(str, stack.kept))
        assert f"| Start | {len(stack.kept)} of the teacher's {stack.depth} layers ({kept}), " in text
        assert front_of(text)["tags"] == ["distillation", "stillhouse", variant]
        assert Recipe.model_validate(yaml.safe_load((folder / "recipe.yaml").read_text())) == recipe
    place = student_folder(recipe, student, "white-box", dataset)
    text = (place.path / "README.md").read_text(encoding="utf-8")
    assert card.held_out is not None
    assert f"| loss, as above | {card.held_out.eval_loss:.4f} |" in text
    assert card.held_out.eval_kl is not None
    assert card.held_out.eval_cross_entropy is not None
    assert card.training["learning_rate"] == 0.01
    assert "max_steps" not in card.training
    assert card.megabytes == (place.path / "model.safetensors").stat().st_size / 1e6


def test_a_student_trained_anew_has_no_figures_of_the_old_one(labelled: Labelled) -> None:
    recipe, student, dataset = labelled
    card = distill(recipe, student, dataset)
    folder = Path(recipe.students) / recipe.name / "white-box"
    write_cards(folder, card, recipe, dataset.manifest, FIGURES)
    assert FIGURES.key[:12] in (folder / "README.md").read_text(encoding="utf-8")
    other = student.model_copy(update={"train": {**student.train, "learning_rate": 0.02}})
    distill(recipe.model_copy(update={"student": other}), other, dataset)
    text = (folder / "README.md").read_text(encoding="utf-8")
    assert FIGURES.key[:12] not in text
    assert "It has not been evaluated." in text
    assert read_card(folder) is not None


def test_a_card_that_says_the_same_is_left_alone(labelled: Labelled) -> None:
    recipe, student, _ = labelled
    place = prepare_untrained(recipe, student)
    card = place.trained_card()
    assert card is not None
    before = (place.path / "README.md").stat().st_ino
    write_cards(place.path, card, recipe, None)
    assert (place.path / "README.md").stat().st_ino == before


def test_a_live_teacher_is_told(tiny_recipe: MakeRecipe, facts: CardFacts) -> None:
    parts = tiny_recipe().model_dump(by_alias=True)["student"] | {"labels": "live"}
    live = dataclasses.replace(facts, student=StudentSettings.model_validate(parts))
    assert "the teacher's full distribution, by a forward pass in every step" in render_card(live)

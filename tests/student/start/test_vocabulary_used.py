"""`student.init.vocabulary: used`, from the dataset to the report."""

from __future__ import annotations

import asyncio
import json
import math
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from pydantic import ValidationError
from transformers import AutoModelForCausalLM, AutoModelForSeq2SeqLM, AutoTokenizer, T5Tokenizer

from stillhouse.dataset.store import Dataset
from stillhouse.errors import DatasetMissing, DatasetRefused, RecipeError, TrainingError
from stillhouse.evaluation.evaluate import evaluate
from stillhouse.labelling.engine import label
from stillhouse.models.files import ModelFiles
from stillhouse.models.load import LanguageModel, decoder_start_token_id, load_language_model
from stillhouse.recipe.label import SoftSettings
from stillhouse.recipe.recipe import Recipe
from stillhouse.recipe.student import StudentSettings
from stillhouse.stages.checks import check_labels, check_student
from stillhouse.stages.finetune import gold_dataset
from stillhouse.stages.stages import distill_stage, students_to_train
from stillhouse.student.finished.folder import student_folder
from stillhouse.student.start import used_tokens as used
from stillhouse.student.start import vocabulary
from stillhouse.student.start.initialise import initialise
from stillhouse.student.start.record import read_start
from stillhouse.student.start.used_tokens import DRAWN, LIKELY, tokenised_texts, used_tokens
from stillhouse.student.training.train import distill
from stillhouse.student.vocabulary_map import VocabularyMap, read_vocabulary_map, vocabulary_map_for
from tests.conftest import MakeRecipe
from tests.encoder_decoders import PHONEMES, tiny_bart, tiny_t5
from tests.precision import close_to_dense, in_float64, largest
from tests.student.start.tokenizers_made import byte_fallback, llama, tokenizer_of, unigram
from tests.t5_small import TEXTS, t5_small

USED = {"from": "teacher", "vocabulary": "used"}
SMALL_T5: dict[str, Any] = {
    **{"num_layers": 2, "num_decoder_layers": 2, "d_model": 16, "d_ff": 32, "d_kv": 4, "num_heads": 2},
    "task_specific_params": None,  # or prompts would have to begin with one of its prefixes
}
BART_TOKENS: dict[str, Any] = {  # of `unigram`
    **{"pad_token_id": 0, "eos_token_id": 1, "bos_token_id": 1, "decoder_start_token_id": 1}
}
Make = Callable[..., Recipe]


@pytest.fixture(scope="module")
def teacher(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """900 tokens, and 28 rows of padding."""
    return llama(tmp_path_factory.mktemp("teacher"), padding=28)


@pytest.fixture
def make(tiny_recipe: MakeRecipe, teacher: Path) -> Make:
    """Makes recipes of this teacher, or another; keywords are settings of the student."""

    def recipe(init: dict[str, Any] = USED, model: Path = teacher, soft: Any = None, **settings: Any) -> Recipe:
        parts = tiny_recipe().model_dump(mode="json", by_alias=True)
        parts["teacher"]["model"] = str(model)
        parts["label"] |= {"mode": "score", "soft": soft or {"k": 16}}  # a random teacher would write any of its tokens
        parts["student"] |= {"init": init, **settings}
        return tiny_recipe(**{part: parts[part] for part in ("teacher", "label", "student")})

    return recipe


def labelled(recipe: Recipe) -> Dataset:
    check_labels(recipe)
    return asyncio.run(label(recipe)).dataset


def student_of(recipe: Recipe) -> StudentSettings:
    assert recipe.student is not None
    return recipe.student


def started(recipe: Recipe, folder: Path) -> tuple[Dataset, VocabularyMap]:
    """The untrained student of a recipe, and how it numbers the teacher's tokens."""
    dataset = labelled(recipe)
    initialise(recipe, student_of(recipe), folder, dataset)
    own = vocabulary_map_for(ModelFiles("student", folder), dataset.manifest.teacher.tokenizer_sha256)
    assert own is not None
    return dataset, own


def same_texts(dataset: Dataset, whole: Path, cut: Path, own: VocabularyMap) -> int:
    """Every text has the same tokens; how many texts there are."""
    lms = [load_language_model(folder, device="cpu") for folder in (whole, cut)]
    pairs = list(zip(*(tokenised_texts(dataset, lm) for lm in lms), strict=True))
    assert all(own.student_ids(np.array(one.token_ids)).tolist() == other.token_ids for one, other in pairs)
    return len(pairs)


# ------------------------------------------------------------------------------------------------------------ the start


@pytest.mark.parametrize("tied", [True, False])
@pytest.mark.numeric
@in_float64()
def test_plain_transformers_opens_a_start_that_computes_as_the_teacher(tied: bool, make: Make, tmp_path: Path) -> None:
    whole = llama(tmp_path / "whole", padding=28, tied=tied)
    dataset, own = started(make(model=whole), tmp_path / "start")
    tokenizer, model = (kind.from_pretrained(tmp_path / "start") for kind in (AutoTokenizer, AutoModelForCausalLM))
    assert 256 + 4 < len(own) == len(tokenizer) == model.config.vocab_size < 800
    assert model.get_input_embeddings().weight.shape == (len(own), 32)
    assert (model.get_output_embeddings().weight is model.get_input_embeddings().weight) == tied
    assert same_texts(dataset, whole, tmp_path / "start", own) == 3 * 12
    ids = torch.randint(len(own), (2, 17), generator=torch.Generator().manual_seed(0))
    teacher = AutoModelForCausalLM.from_pretrained(whole)
    kept = torch.from_numpy(own.teacher_ids).long()
    with torch.inference_mode():
        expected, found = teacher(kept[ids]).logits[..., kept], model(ids).logits
    close_to_dense(found, expected, summed=largest(expected))
    assert tokenizer.chat_template == AutoTokenizer.from_pretrained(whole).chat_template
    for text in ("Ein Käse für 3 € 🎉", "kettle", "<|user|>otter"):
        assert tokenizer.decode(tokenizer(text)["input_ids"]) == text
    start = read_start(tmp_path / "start")
    assert start is not None
    assert start.vocabulary == (len(own), 900)


def test_a_start_that_is_saved_again_is_the_same(make: Make, tmp_path: Path) -> None:
    _, own = started(make(), tmp_path / "start")
    for kind in (AutoTokenizer, AutoModelForCausalLM):
        kind.from_pretrained(tmp_path / "start").save_pretrained(tmp_path / "again")
    one, other = (ModelFiles("", tmp_path / name) for name in ("start", "again"))
    assert one.tokenizer_sha256 == other.tokenizer_sha256 == own.student_sha256
    assert one.chat_template_sha256 == other.chat_template_sha256
    assert other.vocabulary_size == len(own)


@pytest.mark.parametrize("written", [byte_fallback, unigram, lambda: unigram(bytes_too=True)])
def test_other_kinds_of_tokenizers(written: Callable[[], str], make: Make, tmp_path: Path) -> None:
    whole = llama(tmp_path / "whole", tokenizer=written())
    dataset, own = started(make(model=whole), tmp_path / "start")
    assert len(own) < ModelFiles("", whole).vocabulary_size
    assert same_texts(dataset, whole, tmp_path / "start", own) == 3 * 12


def test_a_t5_of_its_own_tokenizer_class(make: Make, tmp_path: Path) -> None:
    """transformers builds a T5Tokenizer anew from the pieces, with <unk> at 2."""
    whole = t5_small(
        tmp_path / "whole",
        num_layers=1,
        num_decoder_layers=1,
        d_model=16,
        d_ff=8,
        d_kv=4,
        num_heads=2,
        task_specific_params=None,
    )
    pieces = json.loads((whole / "tokenizer.json").read_text())["model"]["vocab"]
    tokenizer = T5Tokenizer(vocab=[(piece, score) for piece, score in pieces])
    tokenizer.save_pretrained(whole)
    dataset, own = started(make(model=whole), tmp_path / "start")
    found = AutoTokenizer.from_pretrained(tmp_path / "start")
    assert type(found) is type(AutoTokenizer.from_pretrained(whole)) is T5Tokenizer
    assert same_texts(dataset, whole, tmp_path / "start", own) == 3 * 12
    model = AutoModelForSeq2SeqLM.from_pretrained(tmp_path / "start")
    assert (len(own), 32128) == (model.config.vocab_size, ModelFiles("", whole).vocabulary_size)
    assert found("summarize: an unknown Ω")["input_ids"][-1] == 1
    for text in TEXTS:
        assert found.decode(found(text)["input_ids"], skip_special_tokens=True) == tokenizer.decode(
            tokenizer(text)["input_ids"], skip_special_tokens=True
        )


def test_a_bart_with_its_bias_over_tokens_and_forced_tokens(make: Make, tmp_path: Path) -> None:
    whole = tiny_bart(tmp_path / "whole", vocab_size=720, **BART_TOKENS)
    tokenizer = tokenizer_of(unigram(), eos_token="</s>", pad_token="<pad>")
    tokenizer.save_pretrained(whole)
    last = len(tokenizer) - 1  # which no text has
    model = AutoModelForSeq2SeqLM.from_pretrained(whole)
    model.final_logits_bias = torch.randn(1, 720, generator=torch.Generator().manual_seed(3))
    model.save_pretrained(whole)
    (whole / "generation_config.json").write_text(json.dumps(BART_TOKENS | {"forced_eos_token_id": last}))
    dataset, own = started(make(model=whole), tmp_path / "start")
    assert len(own) < last
    cut = AutoModelForSeq2SeqLM.from_pretrained(tmp_path / "start")
    kept = torch.from_numpy(own.teacher_ids).long()
    assert torch.equal(cut.final_logits_bias, model.final_logits_bias[:, kept])
    assert same_texts(dataset, whole, tmp_path / "start", own) == 3 * 12
    assert decoder_start_token_id(cut) == 1
    written = json.loads((tmp_path / "start/generation_config.json").read_text())
    assert int(kept[written["forced_eos_token_id"]]) == last


def test_a_tokenizer_that_is_used_whole_loses_the_models_padding_alone(make: Make, tmp_path: Path) -> None:
    whole = tiny_t5(tmp_path / "whole", vocab_size=300)
    dataset = labelled(make(model=whole))
    initialise(make(model=whole), student_of(make()), tmp_path / "start", dataset)
    student = ModelFiles("", tmp_path / "start")
    assert student.vocabulary_size == 259
    assert student.tokenizer_sha256 == ModelFiles("", whole).tokenizer_sha256
    assert vocabulary_map_for(student, dataset.manifest.teacher.tokenizer_sha256) is None


def test_layers_and_vocabulary_together(make: Make, tmp_path: Path) -> None:
    _, own = started(make(USED | {"layers": [1]}), tmp_path / "start")
    model = AutoModelForCausalLM.from_pretrained(tmp_path / "start")
    assert (model.config.num_hidden_layers, model.config.vocab_size) == (1, len(own))
    start = read_start(tmp_path / "start")
    assert start is not None
    assert [one.kept for one in start.stacks] == [(1,)]
    assert start.vocabulary == (len(own), 900)


def test_ids_in_settings_and_added_tokens_are_renumbered(make: Make, tmp_path: Path) -> None:
    whole = llama(tmp_path / "whole")
    last = ModelFiles("", whole).vocabulary_size - 1
    (whole / "generation_config.json").write_text(
        json.dumps({"eos_token_id": [0, last], "suppress_tokens": [last, 500], "temperature": 0.5, "do_sample": True})
    )
    _, own = started(make(model=whole), tmp_path / "start")
    new = int(own.student_ids(np.array([last]))[0])
    assert new == len(own) - 1 < last
    written = json.loads((tmp_path / "start/generation_config.json").read_text())
    assert written["eos_token_id"] == [0, new]
    assert new in written["suppress_tokens"]
    assert (written["temperature"], written["do_sample"]) == (0.5, True)
    assert load_language_model(tmp_path / "start", device="cpu").end_ids == [0, new]


# ------------------------------------------------------------------------------------------------- which tokens are used


def test_used_are_the_tokens_of_texts_and_of_likely_labels(make: Make, teacher: Path) -> None:
    recipe = make(soft={"k": 8})
    dataset = labelled(recipe)
    lm = load_language_model(teacher, device="cpu")
    expected = {number for text in tokenised_texts(dataset, lm) for number in text.token_ids}
    for split in ("train", "validation"):
        for batch in dataset.batches(split):
            rows = batch.to_pylist()
            expected |= {one for row in rows for name in ("prompt", "completion") for one in row[f"{name}_token_ids"]}
            if split == "train":
                expected |= {
                    one
                    for row in rows
                    for ids, logprobs in zip(row["top_token_ids"], row["top_logprobs"], strict=True)
                    for one, logprob in zip(ids, logprobs, strict=True)
                    if logprob >= math.log(LIKELY) and one < 928
                }
    assert used_tokens(dataset, lm, 928).tolist() == sorted(expected)
    assert used_tokens(dataset, lm, 500).tolist() == sorted(one for one in expected if one < 500)


def test_of_random_draws_those_that_came_more_than_once(make: Make, teacher: Path) -> None:
    dataset = labelled(make(soft={"encoding": "sampled", "draws": 20}))
    lm = load_language_model(teacher, device="cpu")
    texts = {number for text in tokenised_texts(dataset, lm) for number in text.token_ids}
    drawn: set[int] = set()
    often: set[int] = set()
    for batch in dataset.batches("train"):
        for row in batch.to_pylist():
            for ids, counts in zip(row["sampled_token_ids"], row["sampled_counts"], strict=True):
                drawn |= {*ids}
                often |= {one for one, count in zip(ids, counts, strict=True) if count >= DRAWN}
    assert drawn > often > set()
    assert set(used_tokens(dataset, lm, 928).tolist()) == texts | often


# ------------------------------------------------------------------------------------------------ training and evaluation


@pytest.mark.parametrize("soft", [{"k": 64}, {"encoding": "sampled", "draws": 50}], ids=["top-k", "sampled"])
def test_the_whole_way(soft: dict[str, Any], make: Make, teacher: Path) -> None:
    recipe = make(USED | {"layers": [0]}, soft=soft, quantize="int8")
    check_student(recipe)
    dataset = labelled(recipe)
    for student in students_to_train(recipe):
        losses = [step.loss for step in distill(recipe, student, dataset).log if step.loss is not None]
        assert all(math.isfinite(loss) for loss in losses)
        assert losses[-1] < losses[0]
    place = student_folder(recipe, student_of(recipe), "white-box", dataset)
    own = read_vocabulary_map(place.path)
    assert own is not None
    for folder in (place.path, place.int8):
        assert vocabulary_map_for(ModelFiles("", folder), dataset.manifest.teacher.tokenizer_sha256) is not None
    assert f"{len(own):,} of its 900 tokens" in (place.path / "README.md").read_text()
    first, *students = (report := evaluate(recipe, student_of(recipe), dataset).report).models
    assert first.lost_mass is None
    for model in students:
        assert model.kl_per_token is not None
        assert model.lost_mass is not None
        assert model.agreement is not None
        assert 0 < model.kl_per_token.mean < math.inf
        assert 0 < model.lost_mass.mean < 1
        note = f"The {model.role} has only some of the teacher's tokens: {model.lost_mass.mean:.2%} of the teacher's"
        assert any(line.startswith(note) for line in report.notes)


def test_a_start_with_all_layers_is_as_far_from_the_teacher_as_its_lost_tokens(make: Make) -> None:
    """Untrained, it differs from the teacher by the tokens that are gone, and by nothing else."""
    recipe = make()
    dataset = labelled(recipe)
    for student in students_to_train(recipe):
        distill(recipe, student, dataset)
    untrained = evaluate(recipe, student_of(recipe), dataset).report.models[1]
    assert untrained.kl_per_token is not None
    assert untrained.kl_per_token.mean == pytest.approx(0, abs=1e-5)
    assert untrained.agreement is not None
    place = student_folder(recipe, student_of(recipe), "white-box", dataset)
    own = read_vocabulary_map(place.path)
    assert own is not None
    rows = [row for batch in dataset.batches("validation") for row in batch.to_pylist()]
    likeliest = [ids[0] for row in rows for ids in row["top_token_ids"]]  # by the teacher
    kept = float(np.isin(likeliest, own.teacher_ids).mean())
    assert untrained.agreement.mean == pytest.approx(kept)
    assert untrained.lost_mass is not None
    assert 0 < untrained.lost_mass.mean < 1


@pytest.mark.parametrize("settings", [{"lora": {"r": 4}}, {"freeze": ["embedding"]}, {"packing": True}])
def test_other_ways_to_train(settings: dict[str, Any], make: Make) -> None:
    recipe = make(USED | {"layers": [1]}, **settings)
    check_student(recipe)
    dataset = labelled(recipe)
    losses = [step.loss for step in distill(recipe, student_of(recipe), dataset).log if step.loss is not None]
    assert losses[-1] < losses[0]
    place = student_folder(recipe, student_of(recipe), "white-box", dataset)
    assert read_vocabulary_map(place.path) is not None


def test_an_encoder_decoder(make: Make, tmp_path: Path) -> None:
    whole = t5_small(
        tmp_path / "t5",
        num_layers=2,
        num_decoder_layers=2,
        d_model=16,
        d_ff=32,
        d_kv=4,
        num_heads=2,
        task_specific_params=None,
    )
    recipe = make(USED | {"layers": 1, "choose": "even"}, model=whole)
    check_student(recipe)
    dataset = labelled(recipe)
    for student in students_to_train(recipe):
        losses = [step.loss for step in distill(recipe, student, dataset).log if step.loss is not None]
        assert all(math.isfinite(loss) for loss in losses)
    for model in evaluate(recipe, student_of(recipe), dataset).report.models[1:]:
        assert model.kl_per_token is not None
        assert 0 < model.kl_per_token.mean < math.inf


def test_a_gold_student_learns_references(make: Make) -> None:
    recipe = make()
    labelled(recipe)
    gold = student_of(recipe).model_copy(update={"mode": "gold"})
    card = distill(recipe, gold, gold_dataset(recipe))
    assert card.rows > 0


def test_a_student_of_a_cut_student_is_a_start_for_the_same_labels(make: Make, tmp_path: Path) -> None:
    recipe = make()
    dataset, own = started(recipe, tmp_path / "start")
    second = make({"model": str(tmp_path / "start")})
    check_student(second)
    card = distill_stage(second, student_of(second), dataset).card
    place = student_folder(second, student_of(second), "white-box", dataset)
    assert card.rows > 0
    found = read_vocabulary_map(place.path)
    assert found is not None
    assert found.teacher_ids.tolist() == own.teacher_ids.tolist()


def test_a_model_of_its_own_with_the_teachers_tokenizer(make: Make, tmp_path: Path) -> None:
    shallow = llama(tmp_path / "shallow", layers=1)
    recipe = make({"model": str(shallow), "vocabulary": "used"})
    check_student(recipe)
    dataset, own = started(recipe, tmp_path / "start")
    assert same_texts(dataset, shallow, tmp_path / "start", own) > 0
    start = read_start(tmp_path / "start")
    assert start is not None
    assert start.vocabulary == (len(own), 900)


# -------------------------------------------------------------------------------------------------------- what is refused


def refused(recipe: Recipe) -> str:
    for check in (check_labels, check_student):
        with pytest.raises(RecipeError) as caught:
            check(recipe)
    return str(caught.value)


def test_a_tokenizer_that_cannot_be_cut_is_refused_with_its_name(make: Make, tmp_path: Path) -> None:
    words = tiny_t5(tmp_path / "words", vocabulary=[*PHONEMES])
    message = refused(make(model=words))
    assert message.startswith(f"student.init.vocabulary is 'used': the vocabulary of {words} cannot be cut: ")
    assert "its tokenizer is WordLevel" in message
    assert message.endswith(". Set it to 'all'.")


def test_a_slow_tokenizer_alone_is_refused(make: Make, tmp_path: Path) -> None:
    slow = llama(tmp_path / "slow")
    (slow / "tokenizer.json").rename(slow / "tokenizer.model")
    assert "has no tokenizer.json" in refused(make(model=slow))


def test_a_tokenizer_of_its_own_code_is_refused(make: Make, tmp_path: Path) -> None:
    own = llama(tmp_path / "own")
    settings = json.loads((own / "tokenizer_config.json").read_text())
    (own / "tokenizer_config.json").write_text(json.dumps(settings | {"auto_map": {"AutoTokenizer": ["x.Y", None]}}))
    assert "a tokenizer with custom code" in refused(make(model=own))


def test_a_model_with_another_tokenizer_than_the_teacher_is_refused(make: Make, tmp_path: Path) -> None:
    other = llama(tmp_path / "other", tokenizer=unigram())
    message = refused(make({"model": str(other), "vocabulary": "used"}, mode="black-box"))
    assert f"student.init.model ({other}) has another tokenizer than teacher.model" in message


def test_a_teacher_whose_tokenizer_is_not_known_is_refused(make: Make, teacher: Path) -> None:
    recipe = make({"model": str(teacher), "vocabulary": "used"}, mode="black-box")
    far = recipe.model_copy(update={"teacher": recipe.teacher.model_copy(update={"kind": "openai"})})
    with pytest.raises(RecipeError, match="the tokenizer of a teacher of kind 'openai' is not known"):
        vocabulary.check_used_vocabulary(far, student_of(far), ModelFiles(str(teacher), teacher))


def test_a_live_teacher_is_refused() -> None:
    with pytest.raises(ValidationError, match="labels is 'live': init.vocabulary is 'used'"):
        StudentSettings.model_validate({"init": USED, "labels": "live"})
    StudentSettings.model_validate({"init": USED, "labels": "live", "mode": "black-box"})


def test_a_start_without_a_dataset_names_the_command(make: Make) -> None:
    with pytest.raises(DatasetMissing, match=r"vocabulary is 'used'.*un `stillhouse label`"):
        student_folder(make(), student_of(make()), "untrained", None)


@pytest.mark.parametrize(
    ("sha256", "soft"), [("other", SoftSettings()), (None, SoftSettings()), ("other", None)], ids=str
)
def test_a_dataset_of_other_tokens_is_refused(sha256: str | None, soft: Any, make: Make, tmp_path: Path) -> None:
    recipe = make()
    dataset = labelled(recipe)
    teacher = replace(dataset.manifest.teacher, tokenizer_sha256=sha256)
    other = replace(dataset, manifest=dataset.manifest.model_copy(update={"teacher": teacher, "soft": soft}))
    with pytest.raises(DatasetRefused, match=r"was labelled with another tokenizer \((sha256 other…|not known)\)"):
        initialise(recipe, student_of(recipe), tmp_path / "start", other)
    assert not (tmp_path / "start").exists()


def test_a_text_that_would_have_other_tokens_is_refused_by_name(
    make: Make, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As where transformers builds a tokenizer anew from its parts, and not as it was."""
    recipe = make()
    dataset = labelled(recipe)
    texts = used.tokenised_texts

    def only_some(dataset: Dataset, lm: LanguageModel) -> Any:
        return (text for text in texts(dataset, lm) if text.what == "prompt")

    monkeypatch.setattr(used, "tokenised_texts", only_some)
    monkeypatch.setattr(used, "_TOKENS", ())
    monkeypatch.setattr(used, "LIKELY", 1.0)
    with pytest.raises(
        TrainingError, match=r"the (reference|completion) of row \w+ has other tokens .*'A \w+ is a thing"
    ):
        initialise(recipe, student_of(recipe), tmp_path / "start", dataset)


def test_a_model_that_computes_other_logits_is_refused(
    make: Make, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As one with further tables of tokens would."""
    recipe = make()
    dataset = labelled(recipe)
    rows = vocabulary._rows

    def changed(name: str, *tensors: Any) -> Any:
        return rows(name, *tensors).flip(0)

    monkeypatch.setattr(vocabulary, "_rows", changed)
    with pytest.raises(TrainingError, match="a llama model with a part of its tokens computes other logits"):
        initialise(recipe, student_of(recipe), tmp_path / "start", dataset)

"""Chat templates that refuse: what the recipe causes is refused at once, what one row causes is that row's rejection."""

import asyncio
import json
import logging
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from transformers import AutoTokenizer

from stillhouse.dataset.columns import completion_at
from stillhouse.dataset.store import Dataset
from stillhouse.errors import RecipeError, TeacherUnavailable, TemplateRefused
from stillhouse.evaluation.measures.chat_templates import select_rendered
from stillhouse.evaluation.measures.measurement_task import ModelToMeasure
from stillhouse.exchange.tokens import PromptDecoder
from stillhouse.labelling.engine import label
from stillhouse.models.load import encode_prompt, load_language_model, load_tokenizer
from stillhouse.recipe.label import LabelSettings
from stillhouse.recipe.recipe import Recipe
from stillhouse.records import Completion, Message, Prompt
from stillhouse.stages.checks import check_finetune, check_labels, check_run
from stillhouse.stages.stages import distill_students, plan_stage
from stillhouse.student.data.examples import read_examples
from stillhouse.student.start.used_tokens import tokenised_texts
from stillhouse.teachers.base import AnswerSettings, Refusal, Request, open_teacher
from stillhouse.teachers.serving.check import _encode_conversation
from tests.conftest import CHAT_TEMPLATE, MakeRecipe, make_tiny_model
from tests.labelled_rows import completion

ALTERNATING = (
    "{% for message in messages %}{% if (message['role'] == 'user') != (loop.index0 % 2 == 0) %}"
    "{{ raise_exception('Conversation roles must alternate user/assistant/user/assistant/...') }}{% endif %}{% endfor %}"
)
GEMMA = (
    "{% if messages[0]['role'] == 'system' %}{{ raise_exception('System role not supported') }}{% endif %}"
    + ALTERNATING
    + CHAT_TEMPLATE
)
NEVER = {
    "does not parse": ("a\n{% for message in messages %}", "it does not parse: line 2: "),
    "raises": ("{{ raise_exception('Only tools are welcome') }}", "Only tools are welcome"),
    "undefined": ("{{ messages[0].name.first }}", "has no attribute 'name'"),
    "type": ("{{ messages[0].content + 1 }}", "TypeError: "),
    "division": ("{{ 1 / 0 }}", "ZeroDivisionError: "),
    "unknown filter": ("{{ messages | shout }}", "No filter named 'shout'"),
    "empty": ("{% if false %}x{% endif %}", "it renders no text"),
}
GOOD = [{"role": "user", "content": "Explain tram."}]
TWO_IN_A_ROW = [*GOOD, {"role": "user", "content": "And otter?"}]

Make = Callable[[str], Path]


@pytest.fixture
def model(tmp_path: Path) -> Make:
    """Makes a tiny model with a chat template."""

    def make(template: str, name: str = "templated") -> Path:
        folder = make_tiny_model(tmp_path / name)
        (folder / "chat_template.jinja").write_text(template)
        return folder

    return make


@pytest.fixture
def talks(tmp_path: Path) -> Callable[..., dict[str, Any]]:
    """Writes conversations where a recipe's `prompts` find them, each as often as it is given."""

    def write(rows: Sequence[Any], **settings: Any) -> dict[str, Any]:
        source = tmp_path / "talks.jsonl"
        source.write_text("".join(json.dumps({"messages": row}) + "\n" for row in rows))
        return {"source": str(source), "holdout": 0, **settings}

    return write


def teacher(folder: Path) -> dict[str, Any]:
    return {"kind": "transformers", "model": str(folder)}


def student(folder: Path, **settings: Any) -> dict[str, Any]:
    return {"init": {"model": str(folder)}, "mode": "black-box", "train": {"max_steps": 1}, **settings}


def numbered(number: int, *, twice: bool = False) -> list[dict[str, str]]:
    turn = {"role": "user", "content": f"Explain {number}."}
    return [turn, turn] if twice else [turn]


def rows_of(dataset: Dataset, split: str) -> list[Completion]:
    return [completion_at(batch, row) for batch in dataset.batches(split) for row in range(batch.num_rows)]  # type: ignore[arg-type]


def folders_in(place: Path) -> set[str]:
    return {one.name for one in place.iterdir()}


# ----------------------------------------------------------------------------------------------- what the recipe causes


@pytest.mark.parametrize(("template", "words"), NEVER.values(), ids=NEVER.keys())
@pytest.mark.parametrize("who", ["teacher", "student"])
def test_a_template_that_renders_no_prompt_is_refused_before_anything_is_sent(
    tiny_recipe: MakeRecipe, model: Make, tmp_path: Path, who: str, template: str, words: str
) -> None:
    folder = model(template)
    (folder / "model.safetensors").write_bytes(b"no weights are looked at")
    parts = {"teacher": teacher(folder), "student": None} if who == "teacher" else {"student": student(folder)}
    recipe = tiny_recipe(**parts)
    before = folders_in(tmp_path)
    checks: list[Callable[[Recipe], object]] = [plan_stage, check_labels]
    if who == "student":
        checks.append(check_run)
    for check in checks:
        with pytest.raises(RecipeError) as raised:
            check(recipe)
        setting = "teacher.model" if who == "teacher" else "student.init.model"
        assert (raised.value.setting, raised.value.value) == (setting, str(folder))
        assert "its chat template renders none of the 12 prompts of " in raised.value.problem
        assert words in raised.value.problem
        assert f"the template ({folder / 'chat_template.jinja'})" in str(raised.value.fix)
    assert folders_in(tmp_path) == before


@pytest.mark.parametrize("who", ["teacher", "student"])
def test_a_system_prompt_of_the_recipe_that_a_template_refuses_is_named(
    tiny_recipe: MakeRecipe, model: Make, word_prompts: Path, who: str
) -> None:
    prompts = {"source": str(word_prompts), "template": str(word_prompts.with_suffix(".j2"))}
    own = (
        {"teacher": teacher(model(GEMMA)), "student": None} if who == "teacher" else {"student": student(model(GEMMA))}
    )
    for check in (plan_stage, check_labels, check_run) if who == "student" else (plan_stage, check_labels):
        with pytest.raises(
            RecipeError, match=r"prompts\.system is 'Be brief\.': the chat template of .* refuses a sys"
        ):
            check(tiny_recipe(prompts={**prompts, "system": "Be brief."}, **own))
        check(tiny_recipe(prompts=prompts, **own))


def test_a_teacher_that_is_to_be_fine_tuned_has_the_template_of_its_start(tiny_recipe: MakeRecipe, model: Make) -> None:
    folder = model(NEVER["raises"][0])
    with pytest.raises(RecipeError, match="renders none of the 12 prompts"):
        check_finetune(tiny_recipe(teacher={**teacher(folder), "finetune": {"train": {"max_steps": 1}}}))


def test_named_templates_without_a_default_are_none(tiny_recipe: MakeRecipe, model: Make) -> None:
    folder = model(CHAT_TEMPLATE)
    (folder / "additional_chat_templates").mkdir()
    (folder / "chat_template.jinja").rename(folder / "additional_chat_templates" / "tool_use.jinja")
    with pytest.raises(RecipeError, match="renders none of the 12 prompts"):
        check_labels(tiny_recipe(teacher=teacher(folder), student=None))


def test_a_template_that_is_not_utf_8_is_named(tiny_recipe: MakeRecipe, model: Make) -> None:
    folder = model(CHAT_TEMPLATE)
    (folder / "chat_template.jinja").write_bytes(CHAT_TEMPLATE.encode() + b"\xe9")
    with pytest.raises(RecipeError, match=r"chat_template\.jinja is not UTF-8 .* Save this chat template as UTF-8"):
        check_labels(tiny_recipe(teacher=teacher(folder), student=None))


def test_a_student_is_held_against_the_rows_where_the_prompts_are_gone(
    tiny_recipe: MakeRecipe, model: Make, word_prompts: Path, tmp_path: Path
) -> None:
    recipe = tiny_recipe(student=student(model(NEVER["type"][0])), evaluate={"baselines": []})
    asyncio.run(label(recipe))
    word_prompts.unlink()
    with pytest.raises(RecipeError, match=r"renders none of the \d+ prompts of dataset words/v001: TypeError"):
        distill_students(recipe)
    assert not (tmp_path / "students").exists()


# -------------------------------------------------------------------------------------------------- what one row causes


def test_a_row_that_the_teacher_s_template_refuses_is_that_row_s_rejection(
    tiny_recipe: MakeRecipe, model: Make, talks: Callable[..., dict[str, Any]]
) -> None:
    rows = [numbered(number, twice=number == 0) for number in range(6)]
    recipe = tiny_recipe(prompts=talks(rows), teacher=teacher(model(GEMMA)), student=None)
    check_labels(recipe)
    result = asyncio.run(label(recipe))
    assert result.dataset.manifest.rejected == {"template": 1}
    assert len(rows_of(result.dataset, "train")) == 5
    (file,) = (result.dataset.folder / "rejected").glob("*.parquet")
    import pyarrow.parquet as pq

    (rejected,) = pq.read_table(file).to_pylist()
    assert (rejected["reason"], rejected["stage"]) == ("template", "teacher")
    assert "Conversation roles must alternate" in rejected["detail"]
    assert asyncio.run(label(recipe)).fresh is False


def test_a_server_is_not_asked_what_its_template_refuses(model: Make) -> None:
    """No server listens there: the refusal is made before anything is sent."""
    from stillhouse.recipe.teacher import TeacherSettings

    folder = model(GEMMA)
    settings = TeacherSettings(kind="vllm", model=str(folder), options={"base_urls": ["http://127.0.0.1:9/v1"]})
    settings = settings.model_copy(update={"options": {**settings.options, "check": {"parity": False}}})
    opened = open_teacher(settings, LabelSettings(), 0)
    request = Request(
        Prompt((Message("system", "Be brief."), Message("user", "Hi"))),
        0,
        AnswerSettings.from_label(opened.identity, LabelSettings()),
    )
    (outcome,) = asyncio.run(opened.answer([request]))
    assert isinstance(outcome, Refusal)
    assert (outcome.reason, outcome.detail.endswith("System role not supported")) == ("template", True)


def test_rows_that_a_student_s_template_refuses_are_left_out_and_counted(
    tiny_recipe: MakeRecipe,
    model: Make,
    talks: Callable[..., dict[str, Any]],
    caplog: pytest.LogCaptureFixture,
    capsys: pytest.CaptureFixture[str],
) -> None:
    from stillhouse.cli import results as shown

    rows = [numbered(number, twice=number in (1, 4)) for number in range(8)]
    folder = model(GEMMA)
    recipe = tiny_recipe(
        prompts=talks(rows),
        label={"sampling": {"max_tokens": 4}},
        student=student(folder),
        evaluate={"baselines": []},
    )
    check_run(recipe)
    dataset = asyncio.run(label(recipe)).dataset
    with caplog.at_level(logging.WARNING):
        (result,) = distill_students(recipe)
    assert (result.card.rows, result.card.rows_unrendered, result.card.rows_too_long) == (6, 2, 0)
    assert ", and every other row whose prompt the chat template refuses: Conversation roles" in caplog.text
    shown.print_student(result)
    assert "2 rows were skipped: its chat template rejects their prompts" in capsys.readouterr().out
    lm = load_language_model(folder)
    read = read_examples(dataset, "train", lm, soft=False, by_text=True, max_length=200)
    assert (len(read), read.unrendered) == (6, 2)
    assert min(len(read[place].prompt) for place in range(6)) > 0
    assert sum(one.what == "prompt" for one in tokenised_texts(dataset, lm)) == 6


def test_models_are_compared_on_the_rows_that_all_of_them_render(
    model: Make, tiny_model: Path, caplog: pytest.LogCaptureFixture
) -> None:
    rows = [
        replace(
            completion(number, "top-k"),
            id=str(number),
            prompt=Prompt(tuple(Message("user", turn["content"]) for turn in turns)),
        )
        for number, turns in enumerate(numbered(number, twice=number % 2 == 0) for number in range(4))
    ]
    both = [ModelToMeasure("teacher", "t", tiny_model), ModelToMeasure("student", "s", model(GEMMA))]
    with caplog.at_level(logging.WARNING):
        assert [row.id for row in select_rendered(rows, both)] == ["1", "3"]
    assert "2 of 4 held-out rows are left out of the report: the chat template of the student" in caplog.text
    assert select_rendered(rows, both[:1]) == tuple(rows)
    with pytest.raises(
        RecipeError, match="the chat template of the student .* rejects the prompts of all 2 held-out rows"
    ):
        select_rendered(rows[::2], both)


def test_a_server_is_checked_by_a_talk_that_its_template_renders(model: Make, tmp_path: Path) -> None:
    tokenizer = load_tokenizer(model(GEMMA))
    talk, ids = _encode_conversation(tokenizer)
    assert [turn.role for turn in talk] == ["user"]
    assert ids == encode_prompt(tokenizer, talk)
    tokenizer.chat_template = NEVER["raises"][0]
    with pytest.raises(TeacherUnavailable, match="cannot render a single user message: Only tools are welcome"):
        _encode_conversation(tokenizer)


def test_token_ids_are_read_back_with_a_template_that_knows_no_system_turn(model: Make) -> None:
    folder = model(GEMMA)
    turns = (Message("user", "Explain tram."),)
    prompt = PromptDecoder(folder).prompt(encode_prompt(AutoTokenizer.from_pretrained(folder), turns))
    assert prompt is not None and prompt.messages == turns


@pytest.mark.parametrize(("template", "words"), NEVER.values(), ids=NEVER.keys())
def test_whatever_a_template_raises_is_one_error(tiny_model: Path, template: str, words: str) -> None:
    tokenizer = load_tokenizer(tiny_model)
    tokenizer.chat_template = template
    with pytest.raises(TemplateRefused) as raised:
        encode_prompt(tokenizer, [Message("user", "Hi")])
    assert words in str(raised.value)

"""Answers that repeat themselves, run into the limit, are empty or copied, against plain counting."""

import string

import pytest
from hypothesis import given
from hypothesis import strategies as st

from stillhouse.dataset.store import Dataset
from stillhouse.evaluation.measures.answer_quality import ModelAnswers, answer_qualities
from stillhouse.evaluation.measures.copying import find_copies, training_answers
from stillhouse.evaluation.results import Interval
from stillhouse.recipe.recipe import Recipe
from stillhouse.recipe.student import StudentSettings
from stillhouse.text import bare_words, repeated_share, repeats_itself

word = st.text(string.ascii_lowercase, min_size=1, max_size=6)
few_words = st.lists(st.sampled_from("abcde"), max_size=40)
OVEN = "A warm is a versatile tool that is used to create a versatile tool that is used to create a versatile tool"
DRILL = "A drill is a tool that helps us make things more precise and efficient."


@given(st.lists(word, unique=True, max_size=60))
def test_distinct_words_never_repeat(words: list[str]) -> None:
    assert repeated_share(" ".join(words)) == 0


@given(st.lists(word, min_size=4, max_size=40), st.sampled_from([" ", ". ", "\n", " – "]))
def test_a_text_three_times_always_repeats(words: list[str], between: str) -> None:
    text = " ".join(words)
    assert repeats_itself(between.join([text, text, text]))


@given(few_words)
def test_the_share_is_that_of_counting_each_gram(words: list[str]) -> None:
    grams = [tuple(words[start : start + 4]) for start in range(len(words) - 3)]
    repeated = [place for place, gram in enumerate(grams) if gram in grams[:place]]
    assert repeated_share(" ".join(words)) == (len(repeated) / len(grams) if grams else 0)


@given(
    few_words, st.lists(st.sampled_from([" ", ", ", "! ", "\n- ", " (", ") ", " **", "… ", " _", "。"]), min_size=40)
)
def test_case_and_punctuation_change_nothing(words: list[str], between: list[str]) -> None:
    plain = " ".join(words)
    marked = "".join(f"{one}{mark}" for one, mark in zip(words, between, strict=False))
    assert bare_words(marked) == words
    assert repeated_share(plain) == repeated_share(plain.upper()) == repeated_share(marked)


@pytest.mark.parametrize(
    "text",
    [
        OVEN,
        "tool tool tool tool tool",
        "ha, ha, ha, ha, ha!",
        "Sure.\nHere it is.\nSure.\nHere it is.\nSure.\nHere it is.",
        "我喜欢猫和狗。我喜欢猫和狗。我喜欢猫和狗。",
        "ねこがすきですねこがすきです",
    ],
)
def test_what_stammers(text: str) -> None:
    assert repeats_itself(text)


@pytest.mark.parametrize(
    "text",
    [
        "",
        "...",
        "no no no no",  # a single 4-gram
        DRILL,
        "The capital of France is Paris. The capital of Spain is Madrid. The capital of Italy is Rome.",
        "猫是一种常见的宠物，它们喜欢睡觉和玩耍。",
        "Yes.",
    ],
)
def test_what_does_not_stammer(text: str) -> None:
    assert not repeats_itself(text)


def test_the_threshold_is_a_fifth_and_counts_itself() -> None:
    at = "a b c d a b c d"  # five 4-grams, one of them again
    assert repeated_share(at) == 0.2
    assert repeats_itself(at)
    below = "a b c d e a b c d"  # one of six
    assert repeated_share(below) == pytest.approx(1 / 6)
    assert not repeats_itself(below)


def sound(count: int) -> ModelAnswers:
    texts = tuple(f"{DRILL} {number}" for number in range(count))
    return ModelAnswers(texts, tuple(20 for _ in texts), tuple(False for _ in texts))


def half_broken(count: int) -> ModelAnswers:
    """Every other answer stammers into the limit, and every fourth is empty."""
    texts = tuple(OVEN if number % 2 else "" if number % 4 == 0 else DRILL for number in range(count))
    return ModelAnswers(
        texts, tuple(40 if text == OVEN else 10 for text in texts), tuple(text == OVEN for text in texts)
    )


def test_every_figure_is_a_mean_over_prompts_and_has_its_interval() -> None:
    nothing = [False] * 200
    copied = [number < 20 for number in range(200)]
    teacher, student = answer_qualities([sound(200), half_broken(200)], [nothing, copied], teacher=0)
    assert teacher.from_teacher is None
    assert (teacher.repeats, teacher.cut, teacher.empty, teacher.copied) == (Interval(0, 0, 0),) * 4
    assert teacher.tokens == Interval(20, 20, 20)
    assert (student.repeats.mean, student.cut.mean, student.empty.mean, student.copied.mean) == (0.5, 0.5, 0.25, 0.1)
    assert student.tokens is not None
    assert student.tokens.mean == 25
    wide = 1.96 * (0.25 / 200) ** 0.5
    assert (student.repeats.low, student.repeats.high) == pytest.approx((0.5 - wide, 0.5 + wide), abs=0.015)
    assert student.from_teacher is not None
    assert student.from_teacher.repeats == student.repeats  # the teacher's is 0 in every resample
    length = sum(map(len, half_broken(200).texts)) / sum(map(len, sound(200).texts))
    assert student.from_teacher.length_ratio is not None
    assert student.from_teacher.length_ratio.mean == pytest.approx(length)
    assert student.from_teacher.length_ratio.low < length < student.from_teacher.length_ratio.high


def test_models_are_resampled_together() -> None:
    """Both stammer on the same prompts: nothing is left to chance in the difference."""
    _, student = answer_qualities([half_broken(60), half_broken(60)], [[False] * 60] * 2, teacher=0)
    assert student.from_teacher is not None
    assert student.from_teacher.repeats == Interval(0, 0, 0)
    assert student.from_teacher.length_ratio == Interval(1, 1, 1)
    assert student.repeats.low < student.repeats.high


def test_what_was_not_counted_has_no_figure() -> None:
    silent = ModelAnswers(("", ""), (None, 3), (False, False))
    teacher, student = answer_qualities([silent, sound(2)], [[False] * 2] * 2, teacher=0)
    assert teacher.tokens is None
    assert teacher.empty == Interval(1, 1, 1)
    assert student.from_teacher is not None
    assert student.from_teacher.length_ratio is None  # of nothing there is no multiple


LONG = "one two three four five six seven eight"


def test_a_copy_is_the_answer_to_another_prompt() -> None:
    training = [("p1", LONG), ("p2", "positive"), ("p3", f"{LONG} nine"), ("p3", LONG.replace("one", "uno"))]
    answers = [
        [LONG.upper().replace(" ", "  "), "positive", f"{LONG} ten", LONG],
        ["", "no", f" {LONG} nine\n", "uno two three four five six seven eight"],
    ]
    asked = ["new", "new2", "new3", "p1"]
    assert find_copies(answers, asked, training) == [[True, False, False, False], [False, False, True, True]]
    both = [*training, ("p4", LONG)]
    assert find_copies(answers, asked, both)[0] == [True, False, False, True]  # p4's answer too


@given(
    st.lists(st.tuples(st.sampled_from("pqr"), st.sampled_from([LONG, DRILL, OVEN, "short"])), max_size=8),
    st.lists(st.sampled_from([LONG, DRILL, OVEN, "short", ""]), min_size=3, max_size=3),
)
def test_copies_are_what_comparing_every_pair_finds(training: list[tuple[str, str]], answers: list[str]) -> None:
    expected = [
        text not in ("short", "") and any(text == other and own != prompt for prompt, other in training)
        for text, own in zip(answers, "pqr", strict=True)
    ]
    assert find_copies([answers], "pqr", training) == [expected]


def test_completions_and_references_of_the_training_split_are_read(
    labelled: tuple[Recipe, StudentSettings, Dataset],
) -> None:
    _, _, dataset = labelled
    rows = [row for batch in dataset.batches("train") for row in batch.to_pylist()]
    assert len(rows) > 1
    expected = [(row["prompt_id"], row["completion"][0]["content"]) for row in rows]
    expected += [(row["prompt_id"], row["reference"]) for row in rows]
    assert sorted(training_answers([dataset])) == sorted(expected)
    assert sorted(training_answers([dataset, dataset])) == sorted(expected * 2)

"""The order of requests: what takes longest first, what begins alike together."""

from __future__ import annotations

from collections.abc import Sequence

from hypothesis import given
from hypothesis import strategies as st

from stillhouse.labelling.send_order import order_requests
from stillhouse.recipe.label import LabelSettings
from stillhouse.records import Message, Prompt, TeacherIdentity
from stillhouse.teachers.base import AnswerSettings, Request

TERMS = AnswerSettings.from_label(TeacherIdentity(kind="scripted", model="x"), LabelSettings())


def requests(*texts: str, samples: int = 1) -> list[Request]:
    return [
        Request(Prompt((Message("user", text),)), sample, TERMS, None) for sample in range(samples) for text in texts
    ]


def texts(ordered: Sequence[Request]) -> list[str]:
    return [request.prompt.text for request in ordered]


def test_the_longest_goes_first() -> None:
    listed = ["a", "bb bb bb", "cccc", "dd"]
    assert texts(order_requests(requests(*listed), batched=False)) == ["bb bb bb", "cccc", "dd", "a"]
    assert texts(order_requests(requests(*listed), batched=True)) == ["bb bb bb", "cccc", "dd", "a"]


def test_samples_of_one_prompt_are_sent_together() -> None:
    ordered = texts(order_requests(requests("Name a tree.", "Name it well", samples=3), batched=False))
    assert sorted(ordered[:3]) == [ordered[0]] * 3
    assert sorted(ordered[3:]) == [ordered[3]] * 3


def test_questions_about_one_text_follow_each_other() -> None:
    first, second = "The otter swims. " * 20, "A tram has rails. " * 18
    asked = [
        first + "Who?",
        second + "What is it that it has, and why?",
        first + "Where does it swim?",
        second + "Why?",
    ]
    ordered = texts(order_requests(requests(*asked), batched=False))
    assert [text[:8] for text in ordered] == ["The otte", "The otte", "A tram h", "A tram h"]
    assert ordered[0] == asked[2]  # the longest of the longest group
    mixed = texts(order_requests(requests(*asked), batched=True))
    assert [len(text) for text in mixed] == sorted(map(len, asked), reverse=True)  # a batch is padded: length alone


@given(st.lists(st.text(max_size=12), max_size=30), st.booleans())
def test_nothing_is_lost_or_doubled(listed: list[str], batched: bool) -> None:
    assert sorted(texts(order_requests(requests(*listed), batched=batched))) == sorted(listed)

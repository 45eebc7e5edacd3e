"""A finished student answers one conversation with a string, and a list of conversations with a list."""

import pytest

from stillhouse.student.finished.folder import StudentCard
from stillhouse.student.finished.open import Conversation, Student
from tests.conftest import make_tiny_model

FIRE: Conversation = [{"role": "user", "content": "Explain fire."}]


@pytest.fixture(scope="module")
def student(tmp_path_factory: pytest.TempPathFactory) -> Student:
    return Student(make_tiny_model(tmp_path_factory.mktemp("student")), StudentCard.model_construct(), "cpu")


def test_one_conversation_gets_one_string(student: Student) -> None:
    answer = student.answer("Explain fire.", max_tokens=5)
    assert isinstance(answer, str)
    assert answer
    assert student.answer(FIRE, max_tokens=5) == answer


def test_a_list_gets_a_list_in_its_order(student: Student) -> None:
    fire, ice = student.answer("Explain fire.", max_tokens=5), student.answer("Explain ice.", max_tokens=5)
    assert fire != ice
    assert student.answer(["Explain ice.", FIRE], max_tokens=5) == [ice, fire]
    assert student.answer(["Explain ice."], max_tokens=5) == [ice]
    assert student.answer([FIRE], max_tokens=5) == [fire]
    assert student.answer(("Explain ice.",), max_tokens=5) == [ice]
    nothing: list[Conversation] = []
    assert student.answer(nothing) == []


def test_a_drawn_answer_does_not_depend_on_the_others(student: Student) -> None:
    both = student.answer(["Explain fire.", "Explain ice."], max_tokens=5, temperature=1.0, seed=3)
    assert both == student.answer(["Explain fire.", "Explain ice."], max_tokens=5, temperature=1.0, seed=3)
    assert both[0] == student.answer("Explain fire.", max_tokens=5, temperature=1.0, seed=3)
    assert both[1] == student.answer("Explain ice.", max_tokens=5, temperature=1.0, seed=4)

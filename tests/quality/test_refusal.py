"""Refusals, and answers that only sound like one."""

import time

import pytest

from stillhouse.errors import RecipeError
from stillhouse.quality.refusal import open_filter
from tests.quality.completions import completion

REFUSALS = [
    "I'm sorry, but I can't help with that.",
    "I’m sorry, but I can’t assist with that request.",
    "I can't help you with that.",
    "I cannot help with creating malware.",
    "Sorry, I can't do that.",
    "Sorry, but I am unable to provide medical advice.",
    "As an AI language model, I don't have personal opinions.",
    "As an AI, I cannot form opinions.",
    "As a large language model trained by Example, I do not know.",
    "As an artificial intelligence, my knowledge ends in 2023.",
    "I'm just an AI assistant, so I can't open web pages.",
    "I apologize, but I cannot fulfill this request.",
    "I apologise for any inconvenience, but I'm not able to answer that question.",
    "Unfortunately, I'm unable to assist with this request.",
    "Thank you for your question. However, I cannot provide legal advice.",
    "Thank you for reaching out, but I can't assist with that.",
    "I must respectfully decline.",
    "I must decline to answer.",
    "I won't write that.",
    "**I cannot provide instructions for making weapons.**",
    "\"I'm afraid I can't do that.\"",
    "I'm not comfortable writing about real people.",
    "I do not feel comfortable discussing this.",
    "I don't have the ability to browse the internet.",
    "That's not something I can help with.",
    "It is against my guidelines to say so.",
    "Your request violates our policy.",
    "It would be inappropriate for me to guess.",
    "I'M SORRY, BUT I CAN'T HELP WITH THAT.",
    "That sounds hard.\n\nI can't give you specific medical advice, so see a doctor.",
]

ANSWERS = [
    "I can't recommend this book enough",
    "Sorry is a word of apology.",
    "I can't help but smile when I see it.",
    "I can't help falling in love with you.",
    "I can't help feeling that it was all in vain.",
    "I'm sorry for your loss.",
    "I'm sorry to hear that. Here are three things to try.",
    "As an AI researcher, I work on language models.",
    "As an airline, I would offer vouchers.",
    "As a teacher, I use a language model.",
    "An AI language model is a program that predicts text.",
    "I cannot stress enough how much sleep matters.",
    "I could not sleep, so I got up.",
    "I couldn't do that without you.",
    "I won't do that again, I promise.",
    "I won't be at the meeting on Tuesday.",
    "I am an AI assistant, here to answer your questions.",
    "He said he was unable to assist with the move.",
    "A refusal begins with words such as: unable, sorry, cannot.",
    "You can't divide by zero.",
    "Unfortunately, the tram was late.",
    "I can't provide for a family of six on this wage.",
    "This request goes to the server first.",
    "It is something I can help with.",
    "",
]


@pytest.mark.parametrize("text", REFUSALS)
def test_a_refusal_is_rejected(text: str) -> None:
    detail = open_filter({})(completion(text))
    assert detail is not None
    assert detail.startswith("it declines: ")


@pytest.mark.parametrize("text", ANSWERS)
def test_an_answer_is_kept(text: str) -> None:
    assert open_filter({})(completion(text)) is None


def test_only_the_beginning_is_looked_at() -> None:
    story = "Once there was a robot. " * 10 + "I'm sorry, I can't help with that, it said."
    assert open_filter({})(completion(story)) is None
    assert open_filter({"within": 1000})(completion(story)) is not None


def test_patterns_of_ones_own() -> None:
    keep = open_filter({"patterns": ["outside (of )?my (area|expertise)", "i'd rather not"]})
    assert keep(completion("This is Outside of my expertise.")) == "it declines: 'Outside of my expertise'"
    assert keep(completion("Honestly, I’d rather not.")) == """it declines: "I'd rather not\""""
    assert keep(completion("Certainly.")) is None


def test_a_wrong_pattern_is_refused() -> None:
    with pytest.raises(RecipeError, match=r"quality\.refusal\.patterns\.0 is '\[': .*regular expression"):
        open_filter({"patterns": ["["]})


@pytest.mark.parametrize("unit", ["sorry, ", "I'm sorry for ", "as an ai, ", "thank you for ", "but however ", "-*"])
def test_it_is_quick_whatever_the_text(unit: str) -> None:
    start = time.perf_counter()
    open_filter({"within": 4000})(completion(unit * 1000))
    assert time.perf_counter() - start < 2

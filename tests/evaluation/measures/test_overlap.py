"""The check of held-out prompts, against comparing every pair."""

import random

import pytest
from hypothesis import given
from hypothesis import strategies as st

from stillhouse.evaluation.measures.overlap import find_overlap, jaccard

sentences = st.lists(  # 49 pairs at most: results list the 50 most similar
    st.lists(st.sampled_from("abcdefgh"), min_size=1, max_size=6).map(" ".join), min_size=1, max_size=7, unique=True
)


@given(held_out=sentences, training=sentences, threshold=st.integers(1, 100).map(lambda percent: percent / 100))
def test_it_finds_what_comparing_every_pair_finds(held_out: list[str], training: list[str], threshold: float) -> None:
    from stillhouse.evaluation.measures.overlap import _own_words

    words = _own_words([*dict.fromkeys([*held_out, *training])])
    expected = {
        (one, other)
        for one in held_out
        for other in training
        if one != other and jaccard(words[one], words[other]) >= threshold
    }
    found = find_overlap(held_out, training, threshold)
    assert {(one, other) for one, other, _ in found.near} == expected
    assert set(found.exact) == set(held_out) & set(training)


@pytest.mark.parametrize("percent", range(1, 101))
def test_a_pair_of_exactly_the_threshold_is_found(percent: int) -> None:
    words = [f"w{number}" for number in range(100)]
    held_out, training = " ".join(words), " ".join(words[:percent])
    expected = [] if percent == 100 else [(held_out, training, percent / 100)]
    assert list(find_overlap([held_out], [training], percent / 100).near) == expected


def test_near_duplicates_among_many_long_texts_are_found() -> None:
    rng = random.Random(0)
    held_out, training = [], []
    for number in range(100):
        own = [f"{rng.randrange(number, number + 50)}x{place}" for place in range(rng.randrange(10, 60))]
        held_out.append(" ".join(own))
        changed = rng.sample(own, k=rng.randrange(1, len(own) // 4))
        training.append(" ".join(f"{word}s" if word in changed else word for word in own))
    words = {text: frozenset(text.split()) for text in [*held_out, *training]}
    expected = {(one, other) for one in held_out for other in training if jaccard(words[one], words[other]) >= 0.8}
    assert 20 < len(expected) <= 50
    assert {(one, other) for one, other, _ in find_overlap(held_out, training, 0.8).near} == expected


def test_texts_without_words_are_similar_to_none() -> None:
    assert find_overlap(["!!", "a kettle"], ["??", "a sofa"], 0.8).near == ()


def test_words_of_the_template_do_not_count() -> None:
    template = "Write one simple sentence about a {}."
    held_out, training = (
        [template.format(w) for w in ("kettle", "tram")],
        [template.format(w) for w in ("sofa", "otter", "elbow")],
    )
    assert find_overlap(held_out, training, 0.8).near == ()


def test_near_duplicates_within_a_template_are_found() -> None:
    template = "Sum up: {}"
    held_out = [template.format("the red tram was late again this morning")]
    training = [template.format("the red tram was late again this evening"), template.format("a kettle sings")]
    ((one, other, similarity),) = find_overlap(held_out, training, 0.7).near
    assert (one, other) == (held_out[0], training[0])
    assert 0.7 <= similarity < 1

"""The check of held-out prompts, against comparing every pair."""

from hypothesis import given
from hypothesis import strategies as st

from stillhouse.evaluation.measures.overlap import find_overlap, jaccard

sentences = st.lists(
    st.lists(st.sampled_from("abcdefgh"), min_size=1, max_size=6).map(" ".join), min_size=1, max_size=12, unique=True
)


@given(held_out=sentences, training=sentences, threshold=st.sampled_from([0.5, 0.75, 0.8, 1.0]))
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

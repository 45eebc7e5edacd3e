"""New versions out of finished ones: merged, filtered, re-split; nothing leaks, and the parents stay as they are."""

import hashlib
from dataclasses import replace
from pathlib import Path

import pytest

from stillhouse.dataset.columns import completion_at
from stillhouse.dataset.derive import filter_rows, resplit
from stillhouse.dataset.merge import merge
from stillhouse.dataset.store import Dataset, versions
from stillhouse.errors import DatasetRefused, UsageError
from stillhouse.prompts.load import split_of
from stillhouse.records import content_hash
from tests.dataset.made import SAMPLED, TEACHER, TOP_K, completion, make_dataset, words_of


@pytest.fixture
def root(tmp_path: Path) -> Path:
    return tmp_path / "labels"


def written(root: Path) -> dict[str, str]:
    """Every file below a root, by checksum."""
    files = [path for path in root.rglob("*") if path.is_file() and path.name != ".lock"]
    return {str(path.relative_to(root)): hashlib.sha256(path.read_bytes()).hexdigest() for path in files}


# ----------------------------------------------------------------------------------------------------------------- merge


def test_a_row_that_two_have_comes_once_and_the_first_wins(root: Path) -> None:
    one = make_dataset(root, "one", [completion("kettle", text="first"), completion("otter")])
    two = make_dataset(root, "two", [completion("kettle", text="second"), completion("tram")])
    before = written(root)
    merged = merge([one, two], root, "both")
    assert words_of(merged.dataset, "train") == ["kettle", "otter", "tram"]
    texts = [batch.column("completion")[0].as_py()[0]["content"] for batch in merged.dataset.batches("train")]
    assert texts[0] == "first"
    assert merged.counts == {"rows_read": 4, "repeated": 1, "moved_to_validation": 0, "moved_prompts": 0}
    assert "1 row left out" in merged.notes[0]
    manifest = merged.dataset.manifest
    assert manifest.parents == ("one/v001", "two/v001")
    assert manifest.made_by == "merge" and "1 row left out" in manifest.how
    assert (manifest.mode, manifest.sampling) == (one.manifest.mode, one.manifest.sampling)
    assert manifest.totals.completion_tokens == 15
    assert merged.dataset.problems() == []
    after = written(root)
    assert {name: after[name] for name in before} == before


def test_differing_answers_are_told_with_examples(root: Path) -> None:
    one = make_dataset(root, "words", [completion("kettle", text="wrong"), completion("otter")])
    corrected = [completion("kettle", text="right", id=content_hash("another row")), completion("otter")]
    two = make_dataset(root, "words", corrected)
    merged = merge([one, two], root, "both")
    assert texts_of(merged.dataset) == ["wrong", "A otter is a thing.", "right"]
    assert len(merged.disagreements.prompts) == 1
    (example,) = merged.disagreements.examples
    assert example.prompt == "kettle"
    assert example.answers == {"words/v001": "wrong", "words/v002": "right"}
    (repeated, note) = merged.notes
    assert "1 row left out" in repeated
    assert "1 prompt with differing answers (of 'kettle' words/v001 has 'wrong', words/v002 has 'right')" in note
    assert "--prefer words/v001 or --prefer words/v002" in note
    assert note in merged.dataset.manifest.how
    card = (root / "both/v001/README.md").read_text()
    assert "1 prompt with differing answers" in card and "wrong" in card


@pytest.mark.parametrize(
    ("prefer", "texts"),
    [
        ("words/v001", ["wrong", "A tram is a thing."]),
        ("words@v002", ["right", "A tram is a thing."]),
        ("words/v002/", ["right", "A tram is a thing."]),
    ],
)
@pytest.mark.parametrize("id_", [None, content_hash("another row")])  # a corrected import has the ids of its original
def test_the_preferred_versions_row_wins(root: Path, prefer: str, texts: list[str], id_: str | None) -> None:
    one = make_dataset(root, "words", [completion("kettle", text="wrong")])
    changed = completion("kettle", text="right", **({"id": id_} if id_ else {}))
    two = make_dataset(root, "words", [changed, completion("tram")])
    merged = merge([one, two], root, "both", prefer=prefer)
    assert texts_of(merged.dataset) == texts
    words = prefer.rstrip("/").replace("@", "/")
    assert f"for 1 the answers of {words} were kept" in merged.notes[0]
    assert f"1 row left out: the preferred version {words} has other answers" in merged.notes[1]
    assert merged.dataset.problems() == []


def test_a_preferred_version_without_the_prompt_settles_nothing(root: Path) -> None:
    one = make_dataset(root, "one", [completion("kettle", text="a")])
    two = make_dataset(root, "two", [completion("kettle", text="b", id=content_hash("b"))])
    three = make_dataset(root, "three", [completion("tram")])
    merged = merge([one, two, three], root, "all", prefer="three")
    assert texts_of(merged.dataset) == ["a", "b", "A tram is a thing."]
    assert len(merged.disagreements.prompts) == 1 and "for 1 all answers were kept" in merged.notes[-1]


def test_samples_of_one_version_and_repeats_differ_from_nothing(root: Path) -> None:
    samples = [completion("kettle", sample=number, text=f"answer {number}") for number in range(3)]
    one = make_dataset(root, "one", samples)
    two = make_dataset(root, "two", samples[:2])  # as after a filter
    merged = merge([one, two], root, "both")
    assert merged.dataset.manifest.rows == {"train": 3}
    assert merged.disagreements.prompts == frozenset() and merged.disagreements.examples == ()
    assert not any("differing" in note for note in merged.notes)
    more = make_dataset(root, "more", [*samples[:2], completion("kettle", sample=7, text="another")])
    (example,) = merge([one, more], root, "both").disagreements.examples
    assert example.answers == {"one/v001": "answer 2", "more/v001": "another"}


@pytest.mark.parametrize(
    ("prefer", "words"), [("otter", "none of the merged versions"), ("words", "several merged versions")]
)
def test_a_preference_for_no_one_version_is_refused(root: Path, prefer: str, words: str) -> None:
    datasets = [make_dataset(root, "words", [completion("kettle", text=text)]) for text in ("a", "b")]
    with pytest.raises(UsageError, match=f"--prefer is '{prefer}': {words}.* Use one of words/v001, words/v002"):
        merge(datasets, root, "both", prefer=prefer)
    assert versions(root / "both") == []


def texts_of(dataset: Dataset) -> list[str]:
    batches = list(dataset.batches("train"))
    return [turns[0]["content"] for batch in batches for turns in batch.column("completion").to_pylist()]


def test_what_one_holds_out_stays_held_out(root: Path) -> None:
    one = make_dataset(root, "one", [completion("kettle"), completion("kettle", sample=1), completion("otter")])
    held = [completion("kettle", sample=2, id=content_hash("another")), completion("tram")]
    two = make_dataset(root, "two", [completion("sofa")], held)
    merged = merge([one, two], root, "both")
    assert words_of(merged.dataset, "train") == ["otter", "sofa"]
    assert sorted(words_of(merged.dataset, "validation")) == ["kettle", "kettle", "kettle", "tram"]
    assert (merged.counts["moved_to_validation"], merged.counts["moved_prompts"]) == (2, 1)
    assert "1 prompt (2 rows) moved from train to validation" in merged.notes[0]


def test_soft_labels_come_along_bit_by_bit(root: Path) -> None:
    for soft in (TOP_K, SAMPLED):
        name = soft.encoding
        one = make_dataset(root, f"{name}-1", [completion("kettle", soft=soft)], soft=soft)
        two = make_dataset(root, f"{name}-2", [completion("otter", 7, soft=soft)], soft=soft)
        merged = merge([one, two], root, f"{name}-both").dataset
        assert merged.manifest.soft == soft
        (batch,) = merged.batches("train")
        for index, source in enumerate((one, two)):
            (own,) = source.batches("train")
            assert batch.slice(index, 1).to_pylist() == own.to_pylist()
            assert completion_at(batch, index).trace is not None


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"soft": SAMPLED}, "labels top-k, k = 4 and sampled, 8 draws"),
        ({"soft": TOP_K.model_copy(update={"k": 8})}, "labels top-k, k = 4 and top-k, k = 8"),
        ({"soft": None}, "labels top-k, k = 4 and text only"),
        ({"teacher": replace(TEACHER, tokenizer_sha256="b" * 64)}, "tokenizer aaaaaaaaaaaa… and bbbbbbbbbbbb…"),
        ({"teacher": replace(TEACHER, vocabulary_size=65)}, "vocabulary size 64 and 65"),
        ({"teacher": replace(TEACHER, encoder_decoder=True)}, "teachers causal and encoder-decoder"),
        ({"teacher": replace(TEACHER, model="x", tokenizer_sha256=None)}, "tokenizer aaaaaaaaaaaa… and unknown"),
    ],
)
def test_soft_labels_that_mean_something_else_are_refused(root: Path, changes: dict[str, object], words: str) -> None:
    one = make_dataset(root, "one", [completion("kettle", soft=TOP_K)], soft=TOP_K)
    soft = changes.get("soft", TOP_K)
    two = make_dataset(root, "two", [completion("otter", soft=soft)], **{"soft": TOP_K, **changes})  # type: ignore[arg-type]
    with pytest.raises(DatasetRefused, match="one/v001 and two/v001 have incompatible soft labels") as told:
        merge([one, two], root, "both")
    assert words in str(told.value)
    assert "--text-only" in str(told.value)
    assert not (root / "both").exists()
    merged = merge([one, two], root, "both", text_only=True).dataset
    assert merged.manifest.soft is None
    assert words_of(merged, "train") == ["kettle", "otter"]


def test_two_teachers_and_two_licences(root: Path) -> None:
    one = make_dataset(root, "one", [completion("kettle")], licence="mit")
    two = make_dataset(root, "two", [completion("otter")], teacher=replace(TEACHER, model="b"), licence="apache-2.0")
    manifest = merge([one, two], root, "both").dataset.manifest
    assert [manifest.teacher.model, *(one.model for one in manifest.more_teachers)] == ["teacher-a", "b"]
    assert manifest.licence is None
    assert merge([one, two], root, "both", licence="cc0-1.0").dataset.manifest.licence == "cc0-1.0"
    assert versions(root / "both") == [1, 2]


def test_merging_needs_two_versions(root: Path) -> None:
    one = make_dataset(root, "one", [completion("kettle")])
    for datasets in ([one], [one, one]):
        with pytest.raises(UsageError, match="Name two or more different versions"):
            merge(datasets, root, "both")


def test_a_damaged_parent_is_refused(root: Path) -> None:
    one = make_dataset(root, "one", [completion("kettle")])
    two = make_dataset(root, "two", [completion("otter")])
    assert isinstance(two.folder, Path)
    next((two.folder / "data").iterdir()).write_bytes(b"PAR1")
    for act in (
        lambda: merge([one, two], root, "new"),
        lambda: filter_rows(two, root, "new", "true"),
        lambda: resplit(two, root, "new", 0.5),
    ):
        with pytest.raises(DatasetRefused, match="two/v001"):
            act()
    assert not (root / "new").exists()


@pytest.mark.parametrize("name", ["", "a/b", "../x", ".hidden", "a b"])
def test_a_name_that_is_none(root: Path, name: str) -> None:
    one = make_dataset(root, "one", [completion("kettle")])
    with pytest.raises(UsageError, match="--into is"):
        filter_rows(one, root, name, "true")


# ---------------------------------------------------------------------------------------------------------------- filter


@pytest.fixture
def mixed(root: Path) -> Dataset:
    rows = [
        completion("kettle", 5),
        completion("otter", 250),
        completion("tram", 30, finish_reason="length"),
        completion("sofa", 40, cost_usd=None, completion_tokens=None),
    ]
    return make_dataset(root, "mixed", rows, [completion("elbow", 6), completion("nurse", 900)])


def test_rows_that_meet_a_condition(mixed: Dataset, root: Path) -> None:
    where = "completion_tokens < 200 and finish_reason = 'stop'"
    kept = filter_rows(mixed, root, "short", where)
    assert words_of(kept.dataset, "train") == ["kettle"]
    assert words_of(kept.dataset, "validation") == ["elbow"]
    assert kept.counts == {"rows_read": 6, "kept": 2, "unknown": 1}
    assert kept.notes == ("2 of 6 rows kept", "1 row left out because a column is null there")
    manifest = kept.dataset.manifest
    assert manifest.how.startswith(where)
    assert (manifest.made_by, manifest.parents) == ("filter", ("mixed/v001",))
    assert kept.dataset.problems() == []


def test_soft_rows_can_be_filtered(root: Path) -> None:
    rows = [completion(str(number), number + 1, soft=TOP_K) for number in range(600)]  # of several batches
    dataset = make_dataset(root, "many", rows, soft=TOP_K)
    kept = filter_rows(dataset, root, "odd", "completion_tokens % 2 = 0 and len(completion_token_ids) > 300").dataset
    assert words_of(kept, "train") == [str(number) for number in range(301, 600, 2)]


def test_an_empty_result_writes_nothing(mixed: Dataset, root: Path) -> None:
    with pytest.raises(
        UsageError, match=r"true for none of the 6 rows of mixed/v001 \(1 are undecided because a column is null\)"
    ):
        filter_rows(mixed, root, "none", "completion_tokens < 0")
    assert not (root / "none").exists()


# ----------------------------------------------------------------------------------------------------------------- split


def test_splits_are_by_prompt_and_by_the_rule_of_labelling(root: Path) -> None:
    rows = [completion(f"word {number}", sample=sample) for number in range(50) for sample in range(3)]
    dataset = make_dataset(root, "words", rows[:100], rows[100:])
    parted = resplit(dataset, root, "parted", 0.3)
    train, held = (words_of(parted.dataset, split) for split in ("train", "validation"))
    assert not set(train) & set(held)
    assert len(train) + len(held) == 150
    assert parted.counts == {"train": len(train), "validation": len(held)}
    for row in rows:
        words = held if split_of(row.prompt, 0.3) == "validation" else train
        assert words.count(row.prompt.messages[-1].content) == 3
    less = resplit(parted.dataset, root, "parted", 0.1).dataset
    assert less.manifest.label == "parted/v002"
    assert set(words_of(less, "validation")) <= set(held)  # what was learnt from is never held out by a smaller share


@pytest.mark.parametrize("share", [-0.1, 1.0, float("nan")])
def test_a_share_that_is_none(mixed: Dataset, root: Path, share: float) -> None:
    with pytest.raises(UsageError, match="--validation is"):
        resplit(mixed, root, "new", share)


def test_too_few_prompts(root: Path) -> None:
    row = completion("kettle")
    dataset = make_dataset(root, "one", [row])
    place = int(row.prompt.id[:16], 16) / 2**64
    with pytest.raises(UsageError, match="leave none"):
        resplit(dataset, root, "new", min(place + 1e-6, 0.999999))
    assert not (root / "new").exists()
    assert "no prompt was held out" in resplit(dataset, root, "new", place / 2).notes[0]

"""The words of the on-policy benchmarks, from WordNet's files."""

from benchmarks import glosses_data

DATA = """  1 This software and database is being provided to you, the LICENSEE, by
00001740 05 n 01 otter 0 001 @ 00001930 n 0000 | freshwater carnivorous mammal (of the weasel family); "an otter swam"
00001930 06 n 01 kettle 0 001 @ 00002137 n 0000 | a metal pot for stewing or boiling; usually has a lid
00002137 03 n 01 abstraction 0 000 | a general concept formed by extracting common features
00002200 13 n 01 stew 0 000 | food
"""
INDEX = """  1 This software and database is being provided to you, the LICENSEE, by
otter n 2 1 @ 2 1 00001740 00001930
kettle n 2 3 @ ~ + 2 0 00001930 00001740
sea_otter n 1 0 1 0 00001740
abstraction n 1 0 1 0 00002137
stew n 1 0 1 0 00002200
"""


def test_single_words_have_the_definition_of_their_first_sense() -> None:
    rows = {row["word"]: row for row in glosses_data.words(DATA, INDEX)}
    assert rows == {
        "otter": {"word": "otter", "kind": "animal", "reference": "freshwater carnivorous mammal"},
        "kettle": {"word": "kettle", "kind": "artifact", "reference": "a metal pot for stewing or boiling"},
    }

"""Templates: what they print is text, and whatever goes wrong in them names the template, the row and the mend."""

import json
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from stillhouse.errors import PromptError
from stillhouse.prompts.load import read_prompts
from stillhouse.recipe.prompts import PromptSettings


def rendered(folder: Path, row: dict[str, Any], template: str | bytes, **settings: Any) -> str:
    """The message of the second of two rows."""
    (folder / "p.jsonl").write_text(json.dumps(dict.fromkeys(row, "x")) + "\n" + json.dumps(row) + "\n")
    (folder / "p.j2").write_bytes(template if isinstance(template, bytes) else template.encode())
    settings = {"source": str(folder / "p.jsonl"), "template": str(folder / "p.j2"), **settings}
    *_, last = read_prompts(PromptSettings(**settings))
    return last.text


def refusal(folder: Path, row: dict[str, Any], template: str | bytes, **settings: Any) -> str:
    with pytest.raises(PromptError) as caught:
        rendered(folder, row, template, **settings)
    assert caught.value.exit_status == 2
    return str(caught.value)


WAYS = [  # in which Jinja prints a value
    "{{ word }}",
    "{{ 'a ' ~ word }}",
    "{{ word | upper }}",
    "{{ word | trim }}",
    "{{ word | string }}",
    "{{ word | replace('x', 'y') }}",
    "{{ 'x' | replace('x', word) }}",
    "{{ [word, 'b'] | join(', ') }}",
    "{{ [{'w': word}] | join(', ', attribute='w') }}",
    "{{ 'a %s' % word }}",
    "{{ '%s %s' % ('a', word) }}",
    "{{ '%(w)s' % {'w': word} }}",
    "{{ 'a %s' | format(word) }}",
    "{{ 'a {}'.format(word) }}",
    "{{ 'a {w}'.format(w=word) }}",
    "{{ 'a {w!s}'.format_map({'w': word}) }}",
    "{{ [word] | map('title') | join }}",
    "{{ word | safe }}",
    "{{ word | e }}",
    "{% set said %}{{ word }}{% endset %}{{ said }}",
    "{% macro say(it) %}{{ it }}{% endmacro %}{{ say(word) }}",
    "{% for it in [word] %}{{ it }}{% endfor %}",
]


@pytest.mark.parametrize("template", WAYS)
@pytest.mark.parametrize(
    ("cell", "what"), [(None, "null"), (float("nan"), "null"), (["a"], "a list"), ({"k": "v"}, "an object")]
)
def test_no_way_of_printing_prints_what_only_python_could(tmp_path: Path, template: str, cell: Any, what: str) -> None:
    told = refusal(tmp_path, {"word": cell}, template)
    assert f"which is {what} in row 2 of {tmp_path}/p.jsonl" in told
    assert f"{tmp_path}/p.j2" in told


@pytest.mark.parametrize("template", WAYS)
def test_every_way_of_printing_prints_text_and_numbers(tmp_path: Path, template: str) -> None:
    assert "3" in rendered(tmp_path, {"word": 3}, template)
    assert "tram" in rendered(tmp_path, {"word": "tram"}, template).lower()


def test_a_null_names_its_column_and_the_fix(tmp_path: Path) -> None:
    told = refusal(tmp_path, {"word": None}, "Explain\n{{ word }}.")
    assert told == (
        f"prompts.template is '{tmp_path}/p.j2': it prints 'word', which is null in row 2 of {tmp_path}/p.jsonl (line 2 of "
        "the template). Fill the row, or skip the variable in the template: {% if word %}...{% endif %}."
    )
    assert "prints 'word' (the column 'w')" in refusal(tmp_path, {"w": None}, "{{ word }}", columns={"word": "w"})
    assert "prints a value, which is null" in refusal(tmp_path, {"word": "x"}, "{{ word }}{{ [none] | first }}")


def test_a_mapped_variable_never_takes_its_own_column(tmp_path: Path) -> None:
    told = refusal(tmp_path, {"word": "tram", "term": "x"}, "{{ word }}", columns={"word": "trem"})
    assert "prompts.columns.word is 'trem'" in told
    assert "Did you mean 'term'?" in told
    assert rendered(tmp_path, {"word": "a", "term": "b"}, "{{ word }} {{ term }}", columns={"word": "term"}) == "b b"


def test_a_null_that_is_not_printed_is_a_templates_to_look_at(tmp_path: Path) -> None:
    template = "{% if word %}{{ word }}{% endif %}{% if word is none %}none{% endif %} {{ word or 'nothing' }}"
    for cell in (None, float("nan")):
        assert rendered(tmp_path, {"word": cell}, template) == "none nothing"
    assert (
        rendered(tmp_path, {"word": None}, "{{ word | default('d', true) }}{{ {'w': word} | tojson }}")
        == 'd{"w": null}'
    )


def test_lists_and_objects_are_a_templates_to_write(tmp_path: Path) -> None:
    row = {"tags": ["a", "b"], "more": {"title": "T", "sizes": [1, 2.5], "keys": "own"}}
    template = (
        "{{ tags | join(', ') }}; {% for tag in tags %}{{ loop.index }}/{{ loop.length }} {{ tag }} {% endfor %}; "
        "{{ more.title }}, {{ more['keys'] }}, {{ more.sizes | sum }}; {{ tags | tojson }}; {{ tags | length }}; "
        "{% for name, value in more | dictsort %}{{ name }} {% endfor %}; {{ '%(title)s' % more }}; "
        "{{ '{0[title]}'.format(more) }}"
    )
    expected = 'a, b; 1/2 a 2/2 b ; T, own, 3.5; ["a", "b"]; 2; keys sizes title ; T; T'
    row_first = dict(row)
    (tmp_path / "p.jsonl").write_text(json.dumps(row_first) + "\n")
    (tmp_path / "p.j2").write_text(template)
    (prompt,) = read_prompts(PromptSettings(source=str(tmp_path / "p.jsonl"), template=str(tmp_path / "p.j2")))
    assert prompt.text == expected


@pytest.mark.parametrize(
    "template",
    [
        "{{ word[:1] ~ '' }}",
        "{{ word | sort }}",
        "{{ word | map('upper') }}",
        "{{ (word | list) | upper }}",
        "{{ word.index }}",
    ],
)
def test_what_a_filter_makes_of_a_list_is_not_printed_either(tmp_path: Path, template: str) -> None:
    assert "prints a value" in refusal(tmp_path, {"word": ["a"]}, template)


def test_columns_of_parquet_in_every_type(tmp_path: Path) -> None:
    table = pa.table(
        {
            "word": pa.array([b"kettle"]),
            "narrow": pa.array([0.1], pa.float32()),
            "day": pa.array([19844], pa.date32()),
            "at": pa.array([1714564800000000000], pa.timestamp("ns", "UTC")),
            "yes": [True],
        }
    )
    pq.write_table(table, tmp_path / "p.parquet")
    (tmp_path / "p.j2").write_text("{{ word }} {{ narrow }} {{ day }} {{ at }} {{ yes }} {{ '%.2f' % narrow }}")
    (prompt,) = read_prompts(PromptSettings(source=str(tmp_path / "p.parquet"), template=str(tmp_path / "p.j2")))
    assert prompt.text == "kettle 0.1 2024-05-01 2024-05-01T12:00:00+00:00 true 0.10"


def test_bytes_that_are_no_text_name_row_and_column(tmp_path: Path) -> None:
    pq.write_table(pa.table({"word": pa.array([b"ok", b"\xff\xfe"])}), tmp_path / "p.parquet")
    (tmp_path / "p.j2").write_text("{{ word }}")
    with pytest.raises(PromptError, match=r"prints 'word', which is bytes that are not UTF-8 in row 2 of"):
        list(read_prompts(PromptSettings(source=str(tmp_path / "p.parquet"), template=str(tmp_path / "p.j2"))))


@pytest.mark.parametrize(
    ("template", "words"),
    [
        ("a\n{{ 1 / number }}", r"row 2 of .* \(line 2 of the template\): division by zero"),
        ("{% macro f() %}{{ f() }}{% endmacro %}{{ f() }}", "calls itself too often"),
        ("{{ number.foo() }}", "has no attribute 'foo'"),
        ("{{ number() }}", "not callable"),
        ("{{ number | batch(0) | list | length }}{{ [][1] }}", "row 2 of"),
        ("{{ 'a' | int('x') }}{{ 'x'.index('y') }}", "substring not found"),
        (
            "{% for a in range(99999) %}{% for b in range(99999) %}{% endfor %}{% endfor %}",
            "more than 1,000,000 loop",
        ),
        (
            "{% macro f(n) %}{% if n %}{{ f(n-1) }}{{ f(n-1) }}{% endif %}{% endmacro %}{{ f(60) }}",
            "1,000,000 loop",
        ),
        ("{{ 'a' * 99999999999 }}", "creates a value of 99,999,999,999 items"),
        ("{{ [0] * 99999999999 }}", "creates a value of"),
        ("{{ 9 ** 99999999 }}", "creates a value of .* bits"),
        ("{% include 'other.j2' %}", "no loader"),
    ],
)
def test_a_template_that_fails_names_itself_and_the_row(tmp_path: Path, template: str, words: str) -> None:
    (tmp_path / "p.jsonl").write_text('{"number": 1}\n{"number": 0}\n')
    template = f"{{% if number == 0 %}}{template}{{% endif %}}x" if "endmacro" not in template else template
    (tmp_path / "p.j2").write_text(template)
    with pytest.raises(PromptError, match=words.replace("row 2", "row [12]")) as caught:
        list(read_prompts(PromptSettings(source=str(tmp_path / "p.jsonl"), template=str(tmp_path / "p.j2"))))
    assert "p.j2': it cannot be rendered for row" in str(caught.value)


@pytest.mark.parametrize("encoding", ["utf-8-sig", "utf-16", "utf-32"])
def test_a_templates_byte_order_mark_is_not_sent(tmp_path: Path, encoding: str) -> None:
    assert rendered(tmp_path, {"word": "tram"}, "Erklär {{ word }}.".encode(encoding)) == "Erklär tram."


@pytest.mark.parametrize(
    ("template", "words"),
    [
        (b"x\nErkl\xe4r {{ word }}.", "the file cannot be read: line 2 is not valid UTF-8"),
        ("{{ " + "(" * 500 + "1" + ")" * 500 + " }}", "the template cannot be compiled"),
        ("{% if x %}" * 120 + "{% endif %}" * 120, "the template cannot be compiled"),
        ("{{ word | nonsense }}", "No filter named 'nonsense'"),
    ],
)
def test_a_file_that_is_no_template(tmp_path: Path, template: str | bytes, words: str) -> None:
    told = refusal(tmp_path, {"word": "x", "x": "y"}, template)
    assert told.startswith(f"prompts.template is '{tmp_path}/p.j2'")
    assert words in told

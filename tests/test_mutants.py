"""What `make mutants` changes and leaves out; Cosmic Ray itself is not needed for it."""

import ast

import pytest

from tests.mutants.left_out import is_left_out, left_out
from tests.mutants.report import NO_REASON, Outcome, section
from tests.mutants.rooms import ROOMS, ROOT, room_of

CODE = """\
from typing import TYPE_CHECKING
if TYPE_CHECKING: ...
@cache
def f(x: int | None, *, y: int = 3) -> str | None:
    _LOG.info("seen %d", x + 1)
    if x - 1:
        raise UsageError(f"{x * 2}")
    z: int | str = x / 5
    return StorageFailed(x % 2) or z.sum(dim=-1)
"""


def test_annotations_decorators_and_messages_are_left_out() -> None:
    spans = left_out(CODE)
    kept = {
        type(node.op).__name__
        for node in ast.walk(ast.parse(CODE))
        if isinstance(node, ast.BinOp) and not any(span.holds((node.lineno, node.col_offset)) for span in spans)
    }
    assert kept == {"Sub", "Div"}
    minus = next(node for node in ast.walk(ast.parse(CODE)) if isinstance(node, ast.UnaryOp))
    assert any(span.holds((minus.lineno, minus.col_offset)) for span in spans)
    assert not any(span.holds((minus.operand.lineno, minus.operand.col_offset)) for span in spans)


@pytest.mark.parametrize(
    ("operator", "text", "left"),
    [
        ("core/NumberReplacer", "10", False),
        ("core/NumberReplacer", "120.0", True),
        ("core/NumberReplacer", "1e-8", False),
        ("core/ReplaceComparisonOperator_Eq_Is", "==", True),
        ("core/ReplaceComparisonOperator_Is_IsNot", "is", False),
        ("core/ReplaceComparisonOperator_Eq_NotEq", "==", False),
        ("core/RemoveDecorator", "@", True),
        ("stillhouse/DropCall", "stream.flush()", False),
    ],
)
def test_some_changes_are_left_out_wherever_they_stand(operator: str, text: str, left: bool) -> None:
    assert is_left_out(operator, text) is left


def test_every_room_has_its_files_and_its_quickest_test_first() -> None:
    for room in ROOMS:
        assert list(room.modules())
        assert all(list(ROOT.glob(test)) for test in room.tests)
        assert all((ROOT / way).is_file() for way in room.without)
        assert len(room.test_files()) == len(set(room.test_files()))
    labelling = room_of("pipeline/stillhouse/labelling/rate_limiter.py")
    assert (
        labelling.tests_of("pipeline/stillhouse/labelling/rate_limiter.py")[0] == "tests/labelling/test_rate_limiter.py"
    )
    assert sorted(labelling.tests_of("pipeline/stillhouse/labelling/rate_limiter.py")) == sorted(labelling.test_files())
    found = {str(file.relative_to(ROOT)) for file in (ROOT / "tests/labelling").rglob("test_*.py")}
    assert found - set(labelling.test_files()) == {"tests/labelling/runners/test_ray.py"}


def test_a_survivor_stands_in_the_table_with_its_reason() -> None:
    def outcome(was: str, now: str, killed: bool) -> Outcome:
        return Outcome(
            "pipeline/stillhouse/storage/durable.py", 7, f"--- a\n+++ b\n@@ -1 +1 @@\n-    {was}\n+    {now}\n", killed
        )

    known = Outcome(
        "pipeline/stillhouse/student/losses/base.py",
        42,
        "--- a\n+++ b\n-PAD_TOKEN_ID = -1  # padding in place of a token id\n"
        "+PAD_TOKEN_ID = - 2  # padding in place of a token id\n",
        killed=False,
    )
    outcomes = [outcome("a | b", "a & b", False), outcome("x", "y", True), known]
    text = section(outcomes, sample=3, seed=0, places=1000, machine="")
    assert "3 mutants, a sample of seed 0 (3 asked for) from 1,000 places: 1 were killed, 33.3 %" in text
    assert f"| `pipeline/stillhouse/storage/durable.py:7` | `a \\| b` → `a & b` | {NO_REASON} |" in text
    assert "| equal: any number that is no token id" in text
    assert "| storage | 2 | 1 | 1 |" in text

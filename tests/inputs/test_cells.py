"""What a cell of somebody's table is as text, and what has none."""

import datetime
import decimal
import uuid
from typing import Any

import numpy as np
import pandas as pd
import pyarrow as pa
import pytest

from stillhouse.inputs.cells import NotText, cell_text

ZONE = datetime.timezone(datetime.timedelta(hours=2))


@pytest.mark.parametrize(
    ("cell", "text"),
    [
        (" as it is ", " as it is "),
        ("", ""),
        (7, "7"),
        (-(10**30), "-1" + "0" * 30),
        (2.0, "2.0"),
        (0.1, "0.1"),
        (1e-5, "0.00001"),
        (-2.5e-6, "-0.0000025"),
        (1e20, "100000000000000000000"),
        (1e22, "1e+22"),
        (1e-7, "1e-07"),
        (True, "true"),
        (np.False_, "false"),
        (np.int64(3), "3"),
        (np.float32(0.1), "0.1"),
        (np.float16(0.1), "0.1"),
        (np.float64(1e-5), "0.00001"),
        (np.array(5), "5"),
        (np.str_("a"), "a"),
        (np.datetime64("2024-05-01T12:00"), "2024-05-01T12:00"),
        (pa.scalar("a"), "a"),
        (pa.scalar(2.5, pa.float32()), "2.5"),
        (pa.scalar(b"kettle"), "kettle"),
        (decimal.Decimal("1.50"), "1.50"),
        (decimal.Decimal("1E+3"), "1000"),
        (datetime.date(2024, 5, 1), "2024-05-01"),
        (datetime.datetime(2024, 5, 1, 12, 30, tzinfo=ZONE), "2024-05-01T12:30:00+02:00"),
        (datetime.time(12, 30), "12:30:00"),
        (pd.Timestamp("2024-05-01T12:00:00.000000001"), "2024-05-01T12:00:00.000000001"),
        (uuid.UUID(int=1), "00000000-0000-0000-0000-000000000001"),
        (b"caf\xc3\xa9", "café"),
        (b"\xef\xbb\xbfkettle", "kettle"),
        (bytearray(b"a"), "a"),
        (memoryview(b"a"), "a"),
    ],
)
def test_a_cell_as_a_person_would_write_it(cell: Any, text: str) -> None:
    assert cell_text(cell) == text


@pytest.mark.parametrize(
    "cell",
    [
        None,
        float("nan"),
        float("inf"),
        -float("inf"),
        np.float32("nan"),
        np.float64("inf"),
        decimal.Decimal("NaN"),
        decimal.Decimal("sNaN"),
        decimal.Decimal("-Infinity"),
        np.datetime64("NaT"),
        pd.NaT,
        pd.NA,
        pa.scalar(None, pa.string()),
        pa.scalar(float("nan")),
    ],
    ids=repr,
)
def test_what_is_nothing_has_no_text(cell: Any) -> None:
    assert cell_text(cell) is None


@pytest.mark.parametrize(
    ("cell", "what"),
    [
        ([1], "a list"),
        ((), "a list"),
        ({1}, "a list"),
        (np.array([1]), "a list"),
        (pa.scalar([1]), "a list"),
        ({}, "an object"),
        (pa.scalar({"a": 1}), "an object"),
        (b"\xff", "bytes that are not UTF-8"),
        (datetime.timedelta(1), "a timedelta"),
        (object(), "a object"),
    ],
)
def test_what_only_python_could_print_is_refused(cell: Any, what: str) -> None:
    with pytest.raises(NotText, match=f"^{what}$"):
        cell_text(cell)

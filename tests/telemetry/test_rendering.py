"""How facts are written into a line: whoever reads it with a parser gets back what was said, in one line."""

from __future__ import annotations

import json

import pytest

from holdfast.telemetry.rendering import json_line, logfmt


@pytest.mark.parametrize(
    ("value", "written"),
    [
        ("plain", "plain"),
        ("", ""),
        ("two words", '"two words"'),
        ("a=b", '"a=b"'),
        ('said "no"', '"said \\"no\\""'),
        ('"', '"\\""'),
        ("C:\\dir", "C:\\dir"),
        ("C:\\a dir", '"C:\\\\a dir"'),
        ("first\nsecond", "first\\nsecond"),
        (True, "true"),
        (False, "false"),
        (3, "3"),
        (None, "None"),
        ({"a": 1}, "\"{'a': 1}\""),
    ],
)
def test_a_value_is_written_so_that_it_can_be_read_back(value: object, written: str) -> None:
    """A quote or a line's end within a value would make two facts, or two lines, of one."""
    assert logfmt({"x": value, "y": 1}) == f"x={written} y=1"


def test_a_name_with_a_space_is_refused() -> None:
    """It would read as a value that ended early; the line is dropped and counted instead."""
    with pytest.raises(ValueError, match="two words"):
        logfmt({"two words": 1})


def test_what_json_does_not_know_is_written_as_it_shows_itself() -> None:
    """A fact of an odd type costs its form, never the line."""
    assert json.loads(json_line({"event": "e", "error": ValueError("x"), "n": 1})) == {
        "event": "e",
        "error": "ValueError('x')",
        "n": 1,
    }

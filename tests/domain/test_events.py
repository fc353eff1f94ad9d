"""Events and ids: encoded once, bounded, read back as they were."""

import datetime as dt
import json
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from holdfast.domain import ids
from holdfast.domain.events import (
    EVENT_BYTES_MAX,
    TERMINAL,
    VALUE_BYTES_MAX,
    EventType,
    bounded,
    decode_event,
    encode_event,
    encode_json,
    timestamp,
)
from holdfast.domain.ids import EventId, is_id, parse_event_id
from holdfast.domain.runs import State

pytestmark = pytest.mark.timeout(60)  # Hypothesis draws large values, on a machine that has other work

json_values = st.recursive(
    st.none()
    | st.booleans()
    | st.integers(-(2**53), 2**53)
    | st.floats(allow_nan=False, allow_infinity=False)
    | st.text(max_size=200),
    lambda inner: st.lists(inner, max_size=5) | st.dictionaries(st.text(max_size=9), inner, max_size=5),
    max_leaves=20,
)


@given(st.integers(1, 10**9), st.sampled_from(EventType), st.dictionaries(st.text(min_size=1, max_size=9), json_values))
def test_an_event_is_read_back_as_it_was_written(seq: int, kind: EventType, fields: dict[str, Any]) -> None:
    """Same bytes for every reader, and the same values for each of them."""
    reserved = {"seq", "run", "type", "ts"}
    fields = {k: v for k, v in fields.items() if k not in reserved}
    data = encode_event(seq, "r_1", kind, 1_767_225_600_678, fields)
    expected = {"seq": seq, "run": "r_1", "type": kind.value, "ts": "2026-01-01T00:00:00.678Z", **fields}
    assert decode_event(data) == json.loads(data) == expected
    assert list(json.loads(data))[:4] == ["seq", "run", "type", "ts"]


@given(st.integers(0, 4_102_444_800_000))
def test_a_timestamp_is_utc_with_milliseconds(wall_ms: int) -> None:
    """One format everywhere; parsing it gives the same millisecond."""
    text = timestamp(wall_ms)
    assert len(text) == len("2026-01-02T03:04:05.678Z")
    parsed = dt.datetime.fromisoformat(text)
    assert round(parsed.timestamp() * 1000) == wall_ms


def test_three_types_are_terminal_and_each_end_has_one() -> None:
    """Readers tell the end of a log by its type."""
    assert {f"run.{state}" for state in State if state.terminal} == set(TERMINAL)


def test_what_json_cannot_say_is_written_as_text() -> None:
    """A tool may return anything; an event is never refused because of it."""
    data = encode_event(1, "r_1", EventType.TOOL_FINISHED, 0, {"result": object, "when": complex(1, 2)})
    assert decode_event(data)["when"] == "(1+2j)"


@given(json_values, st.integers(64, 400))
def test_a_bounded_value_fits(value: Any, bytes_max: int) -> None:
    """Itself where it fits, else a marked beginning; never more than the bound and the mark."""
    result = bounded(value, bytes_max)
    size = len(encode_json(value))
    if size <= bytes_max:
        assert result is value
    else:
        assert (result["truncated"], result["bytes"]) == (True, size)
        assert len(result["head"].encode()) <= bytes_max // 2
        text = value if isinstance(value, str) else encode_json(value).decode()
        assert text.startswith(result["head"])


def test_a_bounded_value_fits_into_an_event() -> None:
    """The worst character: six bytes of JSON for one of text."""
    for text in ("\x00" * VALUE_BYTES_MAX, '"' * VALUE_BYTES_MAX, "💡" * VALUE_BYTES_MAX, "x" * 10**7):
        fields = {"call": "c", "name": "n", "outcome": "success", "result": bounded(text), "duration_ms": 1}
        data = encode_event(10**9, "r" * 128, EventType.TOOL_FINISHED, 0, fields)
        assert len(data) <= EVENT_BYTES_MAX


@pytest.mark.parametrize("head", ["x" * 200_000, "\x00" * 200_000, "é" * 100_000])
def test_a_marked_beginning_that_is_cut_again_still_says_how_much_there_was(head: str) -> None:
    """The marker is a tool's bounded result: its size is what the reader is told, not the size of the marker."""
    result = bounded({"truncated": True, "bytes": 10_000_000, "head": head})
    assert result.keys() == {"truncated", "bytes", "head"}
    assert (result["truncated"], result["bytes"]) == (True, 10_000_000)
    assert head.startswith(result["head"])
    assert 0 < len(result["head"].encode()) <= VALUE_BYTES_MAX // 2


@pytest.mark.parametrize(
    "value",
    [
        {"truncated": True, "bytes": "many", "head": "x" * 100_000},
        {"truncated": True, "bytes": 5, "head": ["x" * 100_000]},
    ],
)
def test_what_only_looks_like_a_marked_beginning_is_cut_like_anything(value: dict[str, Any]) -> None:
    """A tool may return such an object of its own: no error, and its own size."""
    result = bounded(value)
    assert (result["truncated"], result["bytes"]) == (True, len(encode_json(value)))


def test_a_value_that_has_no_json_is_bounded_too() -> None:
    """A cycle is said, not raised."""
    cycle: list[Any] = []
    cycle.append(cycle)
    result = bounded(cycle)
    assert result["truncated"] is True
    assert result["head"].startswith("not JSON: ")
    assert len(result["head"]) <= 500


@pytest.mark.parametrize(
    ("text", "parsed"),
    [
        ("0", EventId(0, None)),
        ("7", EventId(7, None)),
        ("7-2", EventId(7, 2)),
        ("007-0", EventId(7, 0)),
        ("", None),
        ("-1", None),
        ("7-", None),
        ("-2", None),
        ("7-2-1", None),
        ("7.5", None),
        ("abc", None),
        (" 7", None),
        ("7\n", None),
        ("1e3", None),
        ("9" * 16, None),
        ("-0", None),
    ],
)
def test_an_offset_is_a_seq_or_an_event_id(text: str, parsed: EventId | None) -> None:
    """Whatever else a client sends is said to be malformed, and never raises."""
    assert parse_event_id(text) == parsed


@given(st.text(max_size=20))
def test_parsing_an_offset_never_raises(text: str) -> None:
    """It comes from the network."""
    parsed = parse_event_id(text)
    assert parsed is None or (parsed.seq >= 0 and (parsed.epoch is None or parsed.epoch >= 0))


@given(st.integers(0, 10**15 - 1), st.none() | st.integers(0, 10**15 - 1))
def test_an_event_id_is_read_back_as_it_was_written(seq: int, epoch: int | None) -> None:
    """What `id:` says, Last-Event-ID brings back."""
    assert parse_event_id(str(EventId(seq, epoch))) == EventId(seq, epoch)


@pytest.mark.parametrize("text", ["\u0663", "7-\u0662", "\uff17"])
def test_other_digits_than_ascii_are_no_offset(text: str) -> None:
    """A seq is written with 0 to 9: other scripts' digits would be another spelling of one id."""
    assert parse_event_id(text) is None


@pytest.mark.parametrize("make", [ids.new_run_id, ids.new_session_id, ids.new_claim_token])
def test_new_ids_are_ids_and_differ(make: Any) -> None:
    """1,000 of them, each valid on the wire."""
    made = {make() for _ in range(1_000)}
    assert len(made) == 1_000
    assert all(is_id(one) for one in made)


@pytest.mark.parametrize("text", ["", "a b", "a/b", "ü", "a\n", "x" * 129, "a,b", "\x00"])
def test_what_is_no_id(text: str) -> None:
    """PROTOCOL: 1 to 128 of [A-Za-z0-9._:-]."""
    assert not is_id(text)
    assert is_id("A-z_0.9:" + "x" * 120)

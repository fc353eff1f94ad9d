"""The reader of client frames: whatever comes is a frame or an error of the catalogue, and never anything else."""

import json
from typing import Any

import msgspec
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from holdfast.domain.errors import CATALOGUE, HoldfastError
from holdfast.domain.ids import EventId
from holdfast.gateway.ws_frames import (
    REASON_BYTES_MAX,
    BadFrame,
    ClientFrame,
    Start,
    close_reason,
    error_frame,
    event_frame,
    frame,
    read_after,
    read_frame,
)
from tests.system.support import full

pytestmark = pytest.mark.timeout(60)

EXAMPLES = full(1000, 50)
OPS = ["start", "subscribe", "unsubscribe", "stop", "steer", "ping", "nope", "", None, 3]
JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False) | st.text(max_size=8),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(max_size=8), inner, max_size=4),
    max_leaves=8,
)
NAMES = ["op", "id", "run", "after", "input", "session", "agent", "on_busy", "on_disconnect", "deadline_s", "subscribe"]
FRAMES = st.builds(
    lambda op, rest: json.dumps({"op": op, **rest}), st.sampled_from(OPS), st.dictionaries(st.sampled_from(NAMES), JSON)
)


def read(text: str | None) -> ClientFrame | BadFrame:
    try:
        return read_frame(text)
    except BadFrame as error:
        return error


def check(text: str | None) -> None:
    found = read(text)
    if isinstance(found, BadFrame):
        assert found.code in CATALOGUE
        assert found.close in (1003, 1007, 1008)
        assert len(found.detail) <= 500
        assert json.loads(error_frame(found, None, found.id))["op"] == "error"
    else:
        assert json.loads(frame("ack", {}, found.id)).get("id") == found.id


@settings(max_examples=EXAMPLES)
@given(st.text() | FRAMES | st.builds(json.dumps, JSON))
def test_any_text_is_a_frame_or_a_refusal_that_can_be_sent(text: str) -> None:
    """A hostile client meets an error frame, not an exception; its id can be said again."""
    check(text)


@settings(max_examples=EXAMPLES)
@given(FRAMES, st.data())
def test_any_frame_cut_or_changed_is_a_frame_or_a_refusal(text: str, data: st.DataObject) -> None:
    """Near misses find what random text does not."""
    at = data.draw(st.integers(0, len(text)))
    check(text[:at] + data.draw(st.text(max_size=3)) + text[at + data.draw(st.integers(0, 3)) :])


@pytest.mark.parametrize(
    "text", ["[" * 200_000, '{"op":"ping","id":' + "9" * 5000 + "}", '{"a":' * 100_000, "\ud800", None]
)
def test_extremes_are_refused(text: str | None) -> None:
    """Deep nesting, long numbers, half a surrogate, a binary message."""
    with pytest.raises(BadFrame):
        read_frame(text)


@pytest.mark.parametrize(("after", "means"), [(0, (0, None)), (7, (7, None)), ("7", (7, None)), ("7-2", (7, 2))])
def test_after_is_a_seq_or_an_event_id(after: int | str, means: tuple[int, int | None]) -> None:
    """As `after` of GET /events, and as a number too."""
    assert read_after(after).id == EventId(*means)


@settings(max_examples=EXAMPLES)
@given(st.integers(max_value=-1) | st.text().filter(lambda t: not t[:1].isdigit()))
def test_another_after_is_invalid_offset(after: int | str) -> None:
    """The same code as over HTTP."""
    with pytest.raises(HoldfastError) as caught:
        read_after(after)
    assert caught.value.code == "invalid_offset"


@settings(max_examples=EXAMPLES)
@given(st.text(max_size=400))
def test_a_close_reason_always_fits(reason: str) -> None:
    """A close frame that is too long would be a failure of its own."""
    cut = close_reason(reason)
    assert len(cut.encode()) <= REASON_BYTES_MAX
    assert reason.startswith(cut)


@settings(max_examples=EXAMPLES)
@given(st.dictionaries(st.text(min_size=1), JSON), st.integers(1, 10**9), st.integers(0, 10**6))
def test_an_event_keeps_its_bytes(fields: dict[str, Any], seq: int, epoch: int) -> None:
    """Every protocol carries the stored bytes: what was written once is what everybody reads."""
    fields = {k: v for k, v in fields.items() if k not in ("op", "event_id")}
    data = msgspec.json.encode({"seq": seq, **{k: v for k, v in fields.items() if _fits(v)}})
    made = event_frame(EventId(seq, epoch), data)
    assert made.endswith(data[1:])
    assert json.loads(made) == {"op": "event", "event_id": f"{seq}-{epoch}", **json.loads(data)}


def test_a_start_takes_what_a_post_takes() -> None:
    """One shape for one thing: the body of POST /api/runs, an idempotency key, and whether to follow it."""
    body = {
        "input": "x",
        "session": "s",
        "on_busy": "reject",
        "on_disconnect": "cancel",
        "deadline_s": 3,
        "metadata": {},
    }
    found = read_frame(json.dumps({"op": "start", "id": 1, "idempotency_key": "k", "subscribe": False, **body}))
    assert isinstance(found, Start)
    assert (found.session, found.on_busy, found.idempotency_key, found.subscribe) == ("s", "reject", "k", False)


def _fits(value: Any) -> bool:
    try:
        msgspec.json.encode(value)
    except (OverflowError, UnicodeEncodeError, ValueError):
        return False
    return True

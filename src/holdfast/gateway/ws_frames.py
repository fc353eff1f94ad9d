"""What goes over a WebSocket: the client's frames, checked against their types, and the server's.

Reading a frame is a pure function of its text: it answers a frame or raises an error of the catalogue, whatever the
text is. Where a refused frame has an id, the error carries it, so that its client knows which of its frames it was.
"""

from __future__ import annotations

from typing import Annotated, Any, Literal

import msgspec

from holdfast.domain.errors import HoldfastError
from holdfast.domain.events import encode_json
from holdfast.domain.ids import ID_PATTERN, EventId, parse_event_id
from holdfast.engine.deciding import DECISIONS_MAX
from holdfast.gateway.bodies import KEY_PATTERN, check_id
from holdfast.gateway.events import Offset
from holdfast.gateway.problems import document, invalid
from holdfast.gateway.runs import Decision, StartBody

SUBPROTOCOL = "holdfast.v1"
REASON_BYTES_MAX = 123  # a close frame has 125 bytes, two of them for the code

_Whole = Annotated[int, msgspec.Meta(ge=-(2**63), le=2**63 - 1)]  # what JSON of ours can say again
RequestId = Annotated[str, msgspec.Meta(max_length=128)] | _Whole | None
_Run = Annotated[str, msgspec.Meta(pattern=f"^{ID_PATTERN}$")]
_Key = Annotated[str, msgspec.Meta(pattern=KEY_PATTERN)]


class Start(StartBody, tag_field="op", tag="start", forbid_unknown_fields=True):
    """As POST /api/runs; `subscribe` follows the run on this socket."""

    id: RequestId = None
    subscribe: bool = True
    idempotency_key: _Key = ""


class Subscribe(msgspec.Struct, tag_field="op", tag="subscribe", forbid_unknown_fields=True):
    """Follow a run from an offset, a seq or an event id; a second one for a run begins anew."""

    run: _Run
    after: _Whole | str = 0
    id: RequestId = None


class Unsubscribe(msgspec.Struct, tag_field="op", tag="unsubscribe", forbid_unknown_fields=True):
    """Follow a run no longer."""

    run: _Run
    id: RequestId = None


class Stop(msgspec.Struct, tag_field="op", tag="stop", forbid_unknown_fields=True):
    """As POST /api/runs/{run}/stop."""

    run: _Run
    id: RequestId = None


class Steer(msgspec.Struct, tag_field="op", tag="steer", forbid_unknown_fields=True):
    """As POST /api/runs/{run}/steer."""

    run: _Run
    input: Annotated[str, msgspec.Meta(min_length=1)]
    id: RequestId = None
    idempotency_key: _Key = ""


class Decide(msgspec.Struct, tag_field="op", tag="decide", forbid_unknown_fields=True):
    """As POST /api/runs/{run}/decisions."""

    run: _Run
    decisions: Annotated[list[Decision], msgspec.Meta(min_length=1, max_length=DECISIONS_MAX)]
    id: RequestId = None
    idempotency_key: _Key = ""


class Ping(msgspec.Struct, tag_field="op", tag="ping"):
    """Answered by pong at once; further fields are ignored."""

    id: RequestId = None


ClientFrame = Start | Subscribe | Unsubscribe | Stop | Steer | Decide | Ping


class BadFrame(HoldfastError):
    """A frame that cannot be taken.

    Attributes:
        id: What the frame called itself, where that could be read.
        of: The operation that it asked for, where that could be read.
        close: The close code, once there were too many of them.
    """

    def __init__(
        self, error: HoldfastError, close: int, request_id: str | int | None = None, of: str | None = None
    ) -> None:
        """As `error`."""
        super().__init__(error.code, error.detail, remedy=error.remedy, **error.fields)
        self.id = request_id
        self.of = of
        self.close = close


class _Named(msgspec.Struct):
    id: RequestId = None


class _Asking(msgspec.Struct):
    op: Literal["start", "subscribe", "unsubscribe", "stop", "steer", "decide", "ping"]


_frames = msgspec.json.Decoder(ClientFrame)
_named = msgspec.json.Decoder(_Named)
_asking = msgspec.json.Decoder(_Asking)
_REMEDY = "send text frames of JSON objects with an op; docs/protocol.md has their fields"


def read_frame(text: str | None) -> ClientFrame:
    """The frame that a client sent; None is a binary message.

    Raises:
        BadFrame: It is none; close is 1003 for a binary message, 1007 for no JSON, 1008 for JSON that does not fit.
    """
    if text is None:
        raise BadFrame(HoldfastError("invalid_request", "a binary message", remedy=_REMEDY), 1003)
    try:
        found: ClientFrame = _frames.decode(text)
    except msgspec.ValidationError as error:
        refused = HoldfastError("invalid_request", f"the frame does not fit: {error}"[:500], remedy=_REMEDY)
        raise BadFrame(refused, 1008, _id_of(text), _operation_of(text)) from error
    except RecursionError as error:
        raise BadFrame(invalid("the frame is nested too deeply"), 1007) from error
    except (msgspec.DecodeError, UnicodeError) as error:
        refused = HoldfastError("invalid_request", f"the frame is not JSON: {error}"[:500], remedy=_REMEDY)
        raise BadFrame(refused, 1007) from error
    return found


def read_after(after: int | str) -> Offset:
    """The offset that a subscribe names.

    Raises:
        HoldfastError: invalid_offset.
    """
    text = str(after)[:128]
    found = parse_event_id(text) if text.isascii() else None
    if found is None:
        raise HoldfastError("invalid_offset", f"after={text[:64]!r} is neither a seq nor an event id")
    return Offset(text, found)


def event_frame(event_id: EventId, data: bytes) -> bytes:
    """An event as a frame: its stored bytes, with `op` and `event_id` before them."""
    return b'{"op":"event","event_id":"%b",%b' % (str(event_id).encode(), data[1:])


def frame(op: str, fields: dict[str, Any], request_id: str | int | None = None) -> bytes:
    """One frame of the server; `request_id` is given back as `id`."""
    named = {} if request_id is None else {"id": request_id}
    return encode_json({"op": op, **named, **fields})


def error_frame(error: HoldfastError, of: str | None, request_id: str | int | None = None, **fields: Any) -> bytes:
    """An error as a frame: the problem document, and which operation it answers."""
    return frame("error", {"of": of, **fields, **document(error)}, request_id)


def close_reason(text: str) -> str:
    """As much of `text` as a close frame has room for."""
    return text.encode()[:REASON_BYTES_MAX].decode(errors="ignore")


def offered(subprotocols: list[str]) -> str | None:
    """The subprotocol to select: ours, where it is offered. A token that is offered beside it is never sent back."""
    return SUBPROTOCOL if SUBPROTOCOL in subprotocols else None


def check_run(text: str) -> str:
    """A run id as PROTOCOL allows it."""
    return check_id(text, "the run id")


def _id_of(text: str) -> str | int | None:
    try:
        return _named.decode(text).id
    except (msgspec.DecodeError, UnicodeError, RecursionError):
        return None


def _operation_of(text: str) -> str | None:
    try:
        return _asking.decode(text).op
    except (msgspec.DecodeError, UnicodeError, RecursionError):
        return None

"""The events of a run's log: their names, their encoding, their bounds.

An event is one JSON object `{"seq", "run", "type", "ts", ...fields}`. It is encoded once, by whoever writes
the log, and every reader of every protocol gets those bytes: same bytes, whenever and wherever they resume.
"""

from __future__ import annotations

import datetime as dt
import re
from collections.abc import Mapping
from enum import StrEnum
from functools import lru_cache
from typing import Any, Final

import msgspec

VALUE_BYTES_MAX: Final = 64 * 1024
EVENT_BYTES_MAX: Final = 256 * 1024


class EventType(StrEnum):
    """Every type of event, as PROTOCOL names them."""

    RUN_CREATED = "run.created"
    RUN_EDITED = "run.edited"  # fields: input; the queued prompt was replaced
    RUN_STARTED = "run.started"
    MODEL_REQUESTED = "model.requested"
    REASONING_DELTA = "reasoning.delta"
    REASONING_DONE = "reasoning.done"
    TEXT_DELTA = "text.delta"
    TEXT_DONE = "text.done"
    TOOL_ARGS = "tool.args"
    TOOL_CALLED = "tool.called"
    TOOL_PROGRESS = "tool.progress"
    TOOL_FINISHED = "tool.finished"
    TOOL_RESPONDED = "tool.responded"  # fields: call, model, finish_reason, usage, duration_ms; see agents.delegation
    MODEL_RESPONDED = "model.responded"
    MODEL_RETRIED = "model.retried"
    ATTEMPT_DISCARDED = "attempt.discarded"
    RUN_STALLED = "run.stalled"
    DEGRADED = "degraded"
    RUN_WAITING = "run.waiting"
    RUN_DECIDED = "run.decided"  # fields: decisions (all so far), open (the calls without one), asked; it waits on
    RUN_RESUMED = "run.resumed"
    STEERED = "steered"
    RUN_STOPPING = "run.stopping"
    RUN_COMPLETED = "run.completed"
    RUN_FAILED = "run.failed"
    RUN_CANCELLED = "run.cancelled"


TERMINAL: Final = frozenset({EventType.RUN_COMPLETED, EventType.RUN_FAILED, EventType.RUN_CANCELLED})

_encoder = msgspec.json.Encoder(enc_hook=str)
_decoder = msgspec.json.Decoder(dict[str, Any])
_any_decoder = msgspec.json.Decoder()
_HALF = re.compile("[\ud800-\udfff]")


def timestamp(wall_ms: int) -> str:
    """Milliseconds since 1970 as `2026-01-02T03:04:05.678Z`."""
    return f"{_second(wall_ms // 1000)}.{wall_ms % 1000:03d}Z"


@lru_cache(maxsize=16)
def _second(wall_s: int) -> str:
    return f"{dt.datetime.fromtimestamp(wall_s, dt.UTC):%Y-%m-%dT%H:%M:%S}"


def moment_ms(text: str) -> int:
    """The milliseconds that `timestamp` was given."""
    return round(dt.datetime.fromisoformat(text).timestamp() * 1000)


def encode_event(seq: int, run: str, kind: EventType, wall_ms: int, fields: Mapping[str, Any]) -> bytes:
    """One event of the log as its final bytes."""
    return _encoder.encode({"seq": seq, "run": run, "type": kind, "ts": timestamp(wall_ms), **fields})


def decode_event(data: bytes) -> dict[str, Any]:
    """The object that `encode_event` wrote."""
    return _decoder.decode(data)


def encode_json(value: object) -> bytes:
    """Compact JSON; what JSON has no form for is written as its `str`."""
    return _encoder.encode(value)


def encodable(text: str) -> str:
    """`text` itself where it has bytes; half of a surrogate pair, which has none, becomes U+FFFD."""
    return text if text.isascii() or _HALF.search(text) is None else _HALF.sub("\ufffd", text)


def bounded(value: Any, bytes_max: int = VALUE_BYTES_MAX) -> Any:
    """`value` itself while its JSON stays within `bytes_max`, else a marked beginning of it.

    Returns:
        The value (where JSON has no form for all of it: what its JSON says), or
        `{"truncated": true, "bytes": n, "head": <its first part as text>}`; of such a one, a shorter one.
    """
    plain = True
    try:
        try:
            encoded = msgspec.json.encode(value)
        except (TypeError, UnicodeEncodeError, NotImplementedError):
            plain, encoded = False, _encoder.encode(mended(value))
    except Exception as error:  # noqa: BLE001 - whatever a tool's own __str__ raises must not end its run
        return {
            "truncated": True,
            "bytes": 0,
            "head": encodable(f"not JSON: {type(value).__name__}: {error}"[:500]),
        }
    if len(encoded) <= bytes_max:
        return value if plain else _any_decoder.decode(encoded)
    size, text = _marked(value) or (
        len(encoded),
        value if isinstance(value, str) else encoded.decode(errors="replace"),
    )
    head = encodable(text[:bytes_max]).encode()[: bytes_max // 2].decode(errors="ignore")
    return {"truncated": True, "bytes": size, "head": head}


def _marked(value: Any) -> tuple[int, str] | None:
    """Size and text of what is a marked beginning already, as a tool's result is beyond `tool_result_bytes`."""
    match value:
        case {"truncated": True, "bytes": int(size), "head": str(text), **more} if not more:
            return size, text
        case _:
            return None


def mended(value: Any) -> Any:
    """A copy of `value` in which every text is `encodable`, however deep."""
    if isinstance(value, str):
        return encodable(value)
    if isinstance(value, dict):
        return {mended(key): mended(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [mended(item) for item in value]
    return value

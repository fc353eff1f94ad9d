"""Reads one run's log to its terminal event, over as many connections as it takes: no gap, no duplicate.

The rules, which any client can follow (docs/protocol.md):
- the place is the last event we have: its seq, and its id as the server wrote it; a reconnect names it;
- a seq at or below the place was seen before: drop it. A seq further than the next one is a gap: reconnect;
- an end without a terminal event is an interruption, never an end: reconnect, waiting 1 s, 2 s, 4 s .. 30 s
  with jitter. Thirty seconds without a byte (keepalives count) is an interruption too;
- `resync` says that the log never had our place: forget what was shown and begin anew. `gone` ends it,
  `unavailable` is an interruption;
- 204 says that we already have the terminal event;
- what speaks no HTTP, or sends frames that are no events, three times in a row, is no server of ours.

This module decides and does no I/O: the synchronous and the asynchronous client ask it what comes next.
"""

from __future__ import annotations

import random
import time
from collections.abc import Callable
from typing import Any, Final, Literal, NamedTuple

import httpx2
import msgspec

from holdfast.client.errors import ApiError, ClientError, Reply, ServerUnreachable, api_error, class_of, unexpected
from holdfast.domain.errors import CATALOGUE
from holdfast.domain.events import EVENT_BYTES_MAX, TERMINAL, decode_event
from holdfast.domain.ids import EventId, parse_event_id

Event = dict[str, Any]
OnInterrupt = Callable[[str, float], None]

RESYNC: Final = "resync"
FRAME_BYTES_MAX: Final = 2 * EVENT_BYTES_MAX
REFUSAL_BYTES_MAX: Final = 256 * 1024
SSE_TYPE: Final = "text/event-stream"
_GONE: Final = "gone"
UNAVAILABLE: Final = "unavailable"
_RETRY_AFTER_S_MAX: Final = 60.0
_GARBLED_MAX: Final = 3
_NO_HTTP: Final = ("illegal ", "Receive buffer too long")  # how h11 says that these bytes are no HTTP

ConnectionState = Literal["connecting", "live", "reconnecting", "ended", "failed", "closed"]


class Connection(NamedTuple):
    """How a follow stands with its server.

    Attributes:
        state: connecting; live; reconnecting, in `wait_s`; ended with the run; failed for good; closed by the caller.
        wait_s: While reconnecting, how long until the next attempt.
        cause: While reconnecting or failed, what happened.
        failures: How many connections in a row brought nothing new.
    """

    state: ConnectionState
    wait_s: float = 0.0
    cause: str = ""
    failures: int = 0


OnState = Callable[[Connection], None]


class Backoff(NamedTuple):
    """How an interrupted reader comes back.

    Attributes:
        first_s: The first wait; each further one is twice as long.
        max_s: The longest wait.
        attempts: How many in a row may bring nothing new.
        sleep: How the synchronous client waits.
    """

    first_s: float = 1.0
    max_s: float = 30.0
    attempts: int = 12
    sleep: Callable[[float], None] = time.sleep

    def wait_s(self, failures: int) -> float:
        """How long to wait after the n-th failure in a row: between half of the step and all of it."""
        step = min(self.max_s, self.first_s * 2.0 ** min(failures - 1, 16))
        return step * random.uniform(0.5, 1.0)  # noqa: S311 - spreads reconnects, guards nothing  # nosec B311


class Place:
    """Where a reader is in a log."""

    def __init__(self, after: int | str) -> None:
        at = parse_event_id(str(after))
        if at is None:
            raise ValueError(f"after is a seq (7) or an event id (7-2), not {after!r}")
        self.at: EventId = at

    @property
    def seq(self) -> int:
        """The last seq that we have."""
        return self.at.seq

    def move(self, seq: int, event_id: str) -> None:
        """We have `seq` now; its id is kept if it is one."""
        at = parse_event_id(event_id)
        self.at = at if at is not None and at.seq == seq else EventId(seq, None)

    def forget(self) -> None:
        """Back to the start."""
        self.at = EventId(0, None)

    def request(self) -> tuple[dict[str, str], dict[str, str]]:
        """Query and headers that name this place."""
        query = {"after": str(self.seq)} if self.seq else {}
        headers = {"Accept": SSE_TYPE}
        if self.at.epoch is not None:
            headers["Last-Event-ID"] = str(self.at)
        return query, headers


class Interrupted(Exception):
    """The connection is of no more use, and the run has not ended."""


class Garbled(Interrupted):
    """What came is not what a Holdfast server sends."""


Broken = Interrupted | httpx2.RequestError | TimeoutError | ApiError
BROKEN: Final = (Interrupted, httpx2.RequestError, TimeoutError, ApiError)


class Reading:
    """One log on its way to us: the place, the connection, what each failure means.

    Attributes:
        connection: How it stands.
        over: Whether everything was read.
        closed: What it means that a connection ended before that.
    """

    closed = "the stream closed before the terminal event"

    def __init__(
        self, url: str, path: str, place: Place, backoff: Backoff, silence_s: float, on_state: OnState | None
    ) -> None:
        self.path = path
        self.place = place
        self.over = False
        self.connection = Connection("connecting")
        self.silence_s = silence_s
        self._url = url
        self.backoff = backoff
        self._on_state = on_state
        self._failures = 0
        self._garbled = 0
        self._began: EventId = place.at
        self._opened_at = 0.0

    @property
    def timeout(self) -> httpx2.Timeout:
        """Of one connection."""
        return httpx2.Timeout(self.silence_s, connect=min(10.0, self.silence_s))

    def connect(self) -> tuple[dict[str, str], dict[str, str]]:
        """A connection is about to be made; its query and its headers."""
        self._began, self._opened_at = self.place.at, time.monotonic()
        self.tell("connecting", failures=self._failures)
        return self.place.request()

    def opened(self, response: httpx2.Response) -> bool:
        """The headers of 200 or 204 came; whether a stream follows.

        Raises:
            ApiError: What answers is no Holdfast server.
        """
        if response.status_code == 204:
            self.over = True
            return False
        media_type = response.headers.get("content-type", "").partition(";")[0]
        if media_type.strip().lower() != SSE_TYPE:
            raise unexpected(reply_of(response, b""))
        self.tell("live")
        return True

    def refused(self, reply: Reply) -> ApiError:
        """What an answer other than 200 and 204 says."""
        return api_error(reply)

    def take(self, frame: httpx2.ServerSentEvent) -> Event | None:
        """The event to hand out, or None for what was seen before or says nothing to us."""
        if not frame.data:
            return None  # `retry:` alone, which httpx2 hands out though it dispatches nothing
        try:
            data = decode_event(frame.data.encode())
        except (msgspec.MsgspecError, RecursionError, UnicodeError) as error:
            raise Garbled(f"a frame that is no event: {error}") from error
        if frame.event == RESYNC:
            self.place.forget()
            return {**data, "type": RESYNC}
        if frame.event == _GONE:
            raise _gone(data)
        if frame.event == UNAVAILABLE:
            raise Interrupted(str(data.get("detail", "the store does not answer")))
        seq, kind = data.get("seq"), data.get("type")
        if type(seq) is not int or not isinstance(kind, str):
            raise Garbled(f"a frame that is no event: seq {seq!r}, type {kind!r}")
        if seq <= self.place.seq:
            return None
        if seq > self.place.seq + 1:
            raise Interrupted(f"a gap: have seq {self.place.seq}, got {seq}")
        self.place.move(seq, frame.id)
        self.over = kind in TERMINAL
        return data

    def failed(self, error: Broken) -> float:
        """The connection is of no more use; how long to wait before the next.

        Raises:
            ApiError: The server refused for good: unknown_run, gone, unauthorized.
            ServerUnreachable: `backoff.attempts` connections in a row brought nothing, or no server of ours answers.
        """
        cause, least_s = _cause(error), 0.0
        if isinstance(error, ApiError):
            if not error.retryable:
                raise self._give_up(error)
            least_s = min(error.retry_after_s or 0.0, _RETRY_AFTER_S_MAX)
        lived_s = time.monotonic() - self._opened_at
        if isinstance(error, httpx2.TimeoutException | TimeoutError):
            lived_s -= self.silence_s  # of its end nothing was heard
        if self.place.at != self._began or lived_s >= self.silence_s:
            self._failures = self._garbled = 0
        self._failures += 1
        self._garbled += _is_garbled(error)
        if self._garbled >= _GARBLED_MAX:
            what = f"what answers there is no Holdfast server, {self._garbled} times in a row: {cause}"
            raise self._give_up(ServerUnreachable(self._url, what)) from error
        if self._failures > self.backoff.attempts:
            what = f"{self._failures} connections in a row brought no new event, the last: {cause}"
            raise self._give_up(ServerUnreachable(self._url, what)) from error
        wait_s = max(least_s, self.backoff.wait_s(self._failures))
        self.tell("reconnecting", wait_s, cause, self._failures)
        return wait_s

    def tell(self, state: ConnectionState, wait_s: float = 0.0, cause: str = "", failures: int = 0) -> None:
        """The connection is in this state now."""
        self.connection = Connection(state, wait_s, cause, failures)
        if self._on_state is not None:
            self._on_state(self.connection)

    def close(self) -> None:
        """Nothing more is read: all of it was, or the caller leaves."""
        if self.connection.state not in ("ended", "failed", "closed"):
            self.tell("ended" if self.over else "closed")

    def _give_up(self, error: ClientError) -> ClientError:
        self.tell("failed", cause=error.detail, failures=self._failures)
        return error


def heard_by(on_interrupt: OnInterrupt | None) -> OnState | None:
    """A listener to all states that passes on interruptions only."""
    if on_interrupt is None:
        return None

    def hear(connection: Connection) -> None:
        if connection.state == "reconnecting":
            on_interrupt(connection.cause, connection.wait_s)

    return hear


def reply_of(response: httpx2.Response, body: bytes) -> Reply:
    """An answer and its body."""
    return Reply(response.status_code, response.headers, body, f"{response.request.method} {response.request.url}")


def _cause(error: Broken) -> str:
    if isinstance(error, ApiError):
        return error.detail
    if isinstance(error, Interrupted):
        return str(error)
    return f"{type(error).__name__}: {error}" if str(error) else type(error).__name__


def _is_garbled(error: Broken) -> bool:
    if isinstance(error, httpx2.RemoteProtocolError):
        return str(error).startswith(_NO_HTTP)
    return isinstance(error, Garbled | httpx2.DecodingError | httpx2.SSEError)


def _gone(data: Event) -> ApiError:
    entry = CATALOGUE["gone"]
    return class_of(entry.status)(
        entry.status,
        str(data.get("code", _GONE)),
        str(data.get("detail") or f"the log of run {data.get('run', '?')} was deleted"),
        str(data.get("remedy") or entry.remedy),
    )

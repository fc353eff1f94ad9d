"""Reads one run's log to its terminal event, over as many connections as it takes: no gap, no duplicate.

The rules, which any client can follow (docs/protocol.md):
- the place is the last event we have: its seq, and its id as the server wrote it; a reconnect names it;
- a seq at or below the place was seen before: drop it. A seq further than the next one is a gap: reconnect;
- an end without a terminal event is an interruption, never an end: reconnect, waiting 1 s, 2 s, 4 s .. 30 s
  with jitter. Thirty seconds without a byte (keepalives count) is an interruption too;
- `resync` says that the log never had our place: forget what was shown and begin anew. `gone` ends it,
  `unavailable` is an interruption;
- 204 says that we already have the terminal event.
"""

from __future__ import annotations

import random
import time
from collections.abc import Callable, Generator, Iterator
from typing import Any, Final, NamedTuple

import httpx2
import msgspec

from holdfast.client.errors import ApiError, ServerUnreachable, api_error
from holdfast.domain.errors import CATALOGUE
from holdfast.domain.events import EVENT_BYTES_MAX, TERMINAL, decode_event
from holdfast.domain.ids import EventId, parse_event_id

Event = dict[str, Any]
OnInterrupt = Callable[[str, float], None]

RESYNC: Final = "resync"
_GONE: Final = "gone"
_UNAVAILABLE: Final = "unavailable"
_RETRY_AFTER_S_MAX: Final = 60.0


class Backoff(NamedTuple):
    """How an interrupted reader comes back. `attempts` counts those in a row that brought nothing new."""

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
        headers = {"Accept": "text/event-stream"}
        if self.at.epoch is not None:
            headers["Last-Event-ID"] = str(self.at)
        return query, headers


class _Interrupted(Exception):
    """The connection is of no more use, and the run has not ended."""


def follow(
    http: httpx2.Client,
    path: str,
    place: Place,
    *,
    backoff: Backoff,
    silence_s: float,
    on_interrupt: OnInterrupt,
) -> Iterator[Event]:
    """Yield events from `place` on until the terminal one, resuming after every interruption.

    Raises:
        ApiError: The server refused for good: unknown_run, gone, unauthorized.
        ServerUnreachable: `backoff.attempts` connections in a row brought nothing.
    """
    failures = 0
    while True:
        before, opened = place.at, time.monotonic()
        least_s = 0.0
        try:
            if (yield from _read(http, path, place, silence_s)):
                return
            cause = "the stream closed before the terminal event"
        except _Interrupted as error:
            cause = str(error)
        except httpx2.TransportError as error:
            cause = f"{type(error).__name__}: {error}" if str(error) else type(error).__name__
        except ApiError as error:
            if not error.retryable:
                raise
            cause = error.detail
            least_s = min(error.retry_after_s or 0.0, _RETRY_AFTER_S_MAX)
        if place.at != before or time.monotonic() - opened >= silence_s:
            failures = 0
        failures += 1
        if failures > backoff.attempts:
            raise ServerUnreachable(
                str(http.base_url), f"{failures} connections in a row brought no new event, the last: {cause}"
            )
        wait_s = max(least_s, backoff.wait_s(failures))
        on_interrupt(cause, wait_s)
        backoff.sleep(wait_s)


def _read(http: httpx2.Client, path: str, place: Place, silence_s: float) -> Generator[Event, None, bool]:
    """One connection; whether the log is read to its end."""
    query, headers = place.request()
    timeout = httpx2.Timeout(silence_s, connect=min(10.0, silence_s))
    with http.stream("GET", path, params=query, headers=headers, timeout=timeout) as response:
        if response.status_code == 204:
            return True
        if response.status_code != 200:
            response.read()
            raise api_error(response)
        for frame in httpx2.EventSource(response, max_event_size=2 * EVENT_BYTES_MAX):
            event = _take(frame, place)
            if event is not None:
                yield event
                if event["type"] in TERMINAL:
                    return True
    return False


def _take(frame: httpx2.ServerSentEvent, place: Place) -> Event | None:
    """The event to hand out, or None for what was seen before or says nothing to us."""
    if not frame.data:
        return None  # `retry:` alone, which httpx2 hands out though it dispatches nothing
    try:
        data = decode_event(frame.data.encode())
    except msgspec.MsgspecError as error:
        raise _Interrupted(f"a frame that is no event: {error}") from error
    if frame.event == RESYNC:
        place.forget()
        return {"type": RESYNC, **data}
    if frame.event == _GONE:
        raise _gone(data)
    if frame.event == _UNAVAILABLE:
        raise _Interrupted(str(data.get("detail", "the store does not answer")))
    seq = data.get("seq")
    if not isinstance(seq, int) or seq <= place.seq:
        return None
    if seq > place.seq + 1:
        raise _Interrupted(f"a gap: have seq {place.seq}, got {seq}")
    place.move(seq, frame.id)
    return data


def _gone(data: Event) -> ApiError:
    entry = CATALOGUE["gone"]
    return ApiError(
        entry.status,
        str(data.get("code", _GONE)),
        str(data.get("detail") or f"the log of run {data.get('run', '?')} was deleted"),
        str(data.get("remedy") or entry.remedy),
    )

"""Reads the list of runs as it changes, over as many connections as it takes; decides, and does no I/O.

Nothing is resumed: each connection begins with `runs`, the list as it is, so that none has to be remembered.
"""

from __future__ import annotations

from typing import Final

import httpx2
import msgspec

from holdfast.client.stream import UNAVAILABLE, Backoff, Event, Garbled, Interrupted, OnState, Place, Reading
from holdfast.domain.events import decode_event

PATH: Final = "/api/events"
_KINDS: Final = frozenset({"runs", "run", "forgotten"})
_UNAUTHORIZED: Final = "unauthorized"  # the server says with 401 why, when we come back


class ListReading(Reading):
    """A list on its way to us. It is never over: who wanted it leaves."""

    closed = "the server closed the list"

    def __init__(
        self, url: str, session: str | None, backoff: Backoff, silence_s: float, on_state: OnState | None
    ) -> None:
        super().__init__(url, PATH, Place(0), backoff, silence_s, on_state)
        self._session = session

    def connect(self) -> tuple[dict[str, str], dict[str, str]]:
        """A connection is about to be made; its query and its headers."""
        _, headers = super().connect()
        return ({} if self._session is None else {"session": self._session}), {"Accept": headers["Accept"]}

    def take(self, frame: httpx2.ServerSentEvent) -> Event | None:
        """The frame as an object with its name as `type`, or None for what says nothing to us."""
        if not frame.data:
            return None
        try:
            data = decode_event(frame.data.encode())
        except (msgspec.MsgspecError, RecursionError, UnicodeError) as error:
            raise Garbled(f"a frame that is no object: {error}") from error
        if frame.event in (UNAVAILABLE, _UNAUTHORIZED):
            raise Interrupted(str(data.get("detail", frame.event)))
        if frame.event not in _KINDS:
            return None
        self.place.move(self.place.seq + 1, "")  # something new came
        return {"type": frame.event, **data}

"""Answers as they come: a chat completion's stream, and a run's log. Each wait on them has a limit."""

from __future__ import annotations

import contextlib
import json
from collections.abc import Callable, Sequence
from typing import Any, Final

from holdfast.domain.events import TERMINAL, EventType
from holdfast.probe.chats import ChatRead, chat_problems
from holdfast.probe.logs import end_problem
from holdfast.probe.results import Failed, Skipped
from holdfast.probe.wire import Silent, Stream

Event = dict[str, Any]

REFUSES: Final = "the server refused a prompt with 429: it sheds load or limits the rate, which is no hang"


class Chat:
    """One prompt to /v1/chat/completions, read as it comes."""

    def __init__(self, stream: Stream, want: str | None, close_s: float) -> None:
        self.stream = stream
        self._close_s = close_s
        self.want = want
        self._read = ChatRead()
        self._taken = 0

    @property
    def read(self) -> ChatRead:
        """What was said so far."""
        for frame in self.stream.frames[self._taken :]:
            self._read.take(frame)
        self._taken = len(self.stream.frames)
        return self._read

    @property
    def run(self) -> str:
        """The id of its run, where the server names it."""
        return self.stream.headers.get("x-run-id", "")

    @property
    def first_ms(self) -> float | None:
        """From the request to the first content."""
        at = self.read.first_at
        return None if at is None else (at - self.stream.began) * 1000

    @property
    def took_ms(self) -> float:
        """From the request to the end of the stream."""
        return (self.stream.ended_at - self.stream.began) * 1000

    async def opened(self, limit_s: float | None = None) -> Chat:
        """Itself, once the server has taken it.

        Raises:
            Failed: It refuses, or answers with something that is no stream.
        """
        await self.stream.opened(limit_s)
        if self.stream.status != 200:
            with contextlib.suppress(Silent):
                await self.stream.ended(limit_s=1.0)
            if self.stream.status == 429:
                raise Skipped(REFUSES)
            raise Failed(
                f"{self.stream.what} was answered with {self.stream.status} {self.stream.body()[:160]}".strip(),
                "200 and a stream",
            )
        return self

    async def first(self, limit_s: float | None = None) -> Chat:
        """Itself, once its first content is there.

        Raises:
            Failed: It ended without any.
        """
        await self.opened(limit_s)
        if not await self.stream.until(lambda: self.read.first_at, "the first content of the answer", limit_s):
            raise Failed(f"the answer ended without content ({self.stream.state()})", "an answer with content")
        return self

    async def finished(self, limit_s: float | None = None) -> ChatRead:
        """What it said in all, once the server has closed the stream.

        Raises:
            Failed: It was cut; or the answer is over, and the stream stays open.
        """
        await self.opened(limit_s)
        await self.stream.until(self._last, "the end of the answer", limit_s, restart=limit_s is None)
        if not self.stream.over:
            said = "[DONE]" if self.read.done else f"finish_reason {self.read.finish}"
            await self._closes(said)
        if self.stream.cut:
            raise Failed(f"the stream was cut: {self.stream.cut}", "a stream that its server ends")
        return self.read

    async def completed(self, limit_s: float | None = None) -> ChatRead:
        """What it said, once it has ended as a stream should.

        Raises:
            Failed: It did not.
        """
        read = await self.finished(limit_s)
        if problems := chat_problems(read, self.want):
            raise Failed("; ".join(problems), "content, a finish_reason and [DONE], in this order")
        return read

    def _last(self) -> bool:
        read = self.read
        return read.done or read.error is not None or read.finish is not None

    async def _closes(self, said: str) -> None:
        try:
            await self.stream.ended(limit_s=self._close_s)
        except Silent:
            missing = "" if self.read.done else ", without [DONE]"
            raise Failed(
                f"{self._close_s:g} s after {said} the stream is still open{missing}",
                "[DONE] after the finish_reason, and then the end of the stream",
            ) from None


class Follow:
    """A run's log on its way to us."""

    def __init__(self, stream: Stream, close_s: float) -> None:
        self.stream = stream
        self._close_s = close_s
        self._events: list[Event] = []
        self._taken = 0

    @property
    def events(self) -> list[Event]:
        """The events so far, frames that are none left out."""
        for frame in self.stream.frames[self._taken :]:
            event = _decoded(frame.data)
            if event is not None:
                self._events.append(event)
        self._taken = len(self.stream.frames)
        return self._events

    @property
    def lines(self) -> list[str]:
        """The same as the bytes that were sent."""
        return [frame.data for frame in self.stream.frames if frame.data]

    async def until(self, holds: Callable[[Sequence[Event]], object], what: str, limit_s: float | None = None) -> bool:
        """Wait until something holds of the events so far; False where the log ended before."""
        await self._opened(limit_s)
        return await self.stream.until(lambda: holds(self.events), what, limit_s)

    async def whole(self, limit_s: float | None = None) -> list[Event]:
        """All events, once the server has closed the stream.

        Raises:
            Failed: It refuses, cuts, or leaves the stream open after the terminal event.
        """
        await self._opened(limit_s)
        await self.stream.until(self._has_end, "the terminal event", limit_s, restart=limit_s is None)
        try:
            await self.stream.ended(limit_s=self._close_s)
        except Silent:
            raise Failed(
                f"{self._close_s:g} s after the terminal event the stream is still open",
                "the server closes it after the terminal event",
            ) from None
        if self.stream.cut:
            raise Failed(f"the stream was cut: {self.stream.cut}", "a stream that its server ends")
        return self.events

    async def goes_on(self, whose: str) -> None:
        """Wait for more of it, or for its own end.

        Raises:
            Failed: It was ended.
        """
        count = len(self.events)
        more = await self.until(lambda events: len(events) > count, f"more of {whose}")
        end = "" if more else end_problem(self.events, EventType.RUN_COMPLETED)
        if end:
            raise Failed(f"{whose} was disturbed: {end}", "it goes on")

    def _has_end(self) -> bool:
        return any(event.get("type") in TERMINAL for event in self.events[-2:])

    async def _opened(self, limit_s: float | None) -> None:
        await self.stream.opened(limit_s)
        if self.stream.status not in (200, 201, 204):
            raise Failed(
                f"{self.stream.what} was answered with {self.stream.status} {self.stream.body()[:160]}",
                "the run's log",
            )


def _decoded(data: str) -> Event | None:
    try:
        found: Any = json.loads(data)
    except ValueError:
        return None
    return found if isinstance(found, dict) else None

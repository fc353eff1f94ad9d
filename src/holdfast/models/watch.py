"""Tells a model that thinks from one that hangs: by content, not by bytes.

A keepalive comment, an empty chunk, a role without text: bytes, and no progress. Only text, reasoning and tool
arguments reset the timer between contents.

The timers run only while we wait inside the upstream's stream. A reader of ours that is slow (the appender waits
for a store that is down) is not the model's silence and must not end the run as if it were.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Awaitable
from typing import TypeVar

from pydantic_ai.messages import (
    ModelResponseStreamEvent,
    PartDeltaEvent,
    PartStartEvent,
    TextPart,
    TextPartDelta,
    ThinkingPart,
    ThinkingPartDelta,
    ToolCallPartDelta,
)

from holdfast.models.errors import Limit, ModelStalled
from holdfast.ports.probe import Probe

T = TypeVar("T")


class Watch:
    """The three limits on one model request, counted in time spent waiting for it."""

    def __init__(self, model_name: str, probe: Probe, first_s: float, idle_s: float, request_s: float) -> None:
        """Start with everything left.

        Args:
            model_name: For the error.
            probe: Told what is waited for.
            first_s: Until the first content.
            idle_s: Between contents.
            request_s: For all of it.
        """
        self._model_name = model_name
        self._probe = probe
        self._limits: dict[Limit, float] = {
            "model_first_content_timeout": first_s,
            "model_idle_timeout": idle_s,
            "model_request_timeout": request_s,
        }
        self._silent = 0.0
        self._spent = 0.0
        self.has_content = False

    async def wait(self, what: Awaitable[T]) -> T:
        """Await one step of the upstream within what is left.

        Raises:
            ModelStalled: A limit fired; the step was cancelled.
        """
        loop = asyncio.get_running_loop()
        limit, left = self._nearest()
        on = "model" if self.has_content else "model first content"
        self._probe.waits(on, fires=limit.removesuffix("_timeout"), fires_in_s=left)
        began = loop.time()
        timer = asyncio.timeout(left)
        try:
            async with timer:
                return await what
        except TimeoutError as error:
            if not timer.expired():
                raise
            raise ModelStalled(self._model_name, limit, self._limits[limit]) from error
        finally:
            took = loop.time() - began
            self._silent += took
            self._spent += took

    def content(self) -> None:
        """Something that counts has arrived."""
        self.has_content = True
        self._silent = 0.0

    async def events(self, stream: AsyncIterator[ModelResponseStreamEvent]) -> AsyncIterator[ModelResponseStreamEvent]:
        """The stream's events, each within what is left."""
        while True:
            try:
                event = await self.wait(anext(stream))
            except StopAsyncIteration:
                return
            if is_content(event):
                self.content()
            yield event

    def _nearest(self) -> tuple[Limit, float]:
        silence: Limit = "model_idle_timeout" if self.has_content else "model_first_content_timeout"
        until_silence = self._limits[silence] - self._silent
        until_end = self._limits["model_request_timeout"] - self._spent
        if until_end < until_silence:
            return "model_request_timeout", max(0.0, until_end)
        return silence, max(0.0, until_silence)


def is_content(event: ModelResponseStreamEvent) -> bool:
    """Whether an event brings text, reasoning, a call or anything else of the answer."""
    if isinstance(event, PartStartEvent):
        part = event.part
        return bool(part.content) if isinstance(part, TextPart | ThinkingPart) else True
    if isinstance(event, PartDeltaEvent):
        delta = event.delta
        if isinstance(delta, TextPartDelta | ThinkingPartDelta):
            return bool(delta.content_delta)
        if isinstance(delta, ToolCallPartDelta):
            return bool(delta.args_delta or delta.tool_name_delta)
        return True
    return False

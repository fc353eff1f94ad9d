"""A plain async generator as an agent: it yields text, or events of the port, and the rest is ours.

The same for whatever else yields: an object of the user's with the port's four names is taken through here, too, so
that what it may yield, and what becomes of its exceptions, is the same in both.

    async def agent(ctx):
        yield "Hello "
        yield "world"

Consecutive strings are one part; an event in between ends it. Without a `Result` of its own the output is all text.
"""

from __future__ import annotations

from collections.abc import AsyncIterator, Callable
from typing import Any, get_args

from holdfast.domain.errors import RunEnded, exit_in
from holdfast.domain.runs import Reason
from holdfast.ports.agent import AgentEvent, PartDone, ReasoningDelta, Result, RunContext, TextDelta
from holdfast.ports.probe import enter

_EVENTS = get_args(AgentEvent)


class GeneratorAgent:
    """A function that yields behind the `Agent` port."""

    def __init__(
        self,
        function: Callable[[RunContext], AsyncIterator[Any]],
        name: str,
        *,
        kind: str = "",
        resumable: bool = False,
        model_name: str = "",
    ) -> None:
        """Take the function; it is called once for each attempt.

        Args:
            function: Yields text, or events of the port.
            name: What clients call it.
            kind: Of the native history in its results; "" where it has none.
            resumable: Whether it yields checkpoints, and goes on from `ctx.checkpoint`.
            model_name: The model it asks, for run records.
        """
        self.name = name
        self.function = function
        self.kind = kind
        self.resumable = resumable
        self.model_name = model_name

    async def run(self, ctx: RunContext) -> AsyncIterator[AgentEvent]:
        """Iterate the generator; close it whatever happens.

        Raises:
            RunEnded: The generator raised, or yielded what is neither text nor an event.
        """
        enter(ctx.probe)
        fold = _Fold(ctx.first_part)
        items = self.function(ctx)
        try:
            while True:
                try:
                    item = await anext(items)
                except StopAsyncIteration:
                    break
                except RunEnded:
                    raise
                except Exception as error:
                    if exit_in(error) is not None:
                        raise
                    raise RunEnded(
                        Reason.AGENT_ERROR,
                        "agent_exception",
                        f"{type(error).__name__}: {error}",
                        cause=type(error).__name__,
                        remedy="see the worker's log for the traceback",
                    ) from error
                for event in fold.take(item):
                    yield event
                if fold.ended:
                    return
        finally:
            close = getattr(items, "aclose", None)  # an iterator of a class of its own may have none
            if close is not None:
                await close()
        for event in fold.end():
            yield event


class _Fold:
    """Strings to parts, and a result at the end."""

    def __init__(self, first_part: int) -> None:
        self._next_part = first_part
        self._part: int | None = None
        self._text: list[str] = []
        self.ended = False

    def take(self, item: Any) -> list[AgentEvent]:
        if isinstance(item, str):
            return self._say(item)
        if not isinstance(item, _EVENTS):
            raise RunEnded(
                Reason.AGENT_ERROR,
                "agent_bad_event",
                f"the agent yielded a {type(item).__name__}; it may yield str or an event of holdfast.ports.agent",
                remedy="yield text as str",
            )
        if isinstance(item, TextDelta):
            self._text.append(item.text)
        if isinstance(item, TextDelta | ReasoningDelta | PartDone):
            self._next_part = max(self._next_part, item.part + 1)
        self.ended = isinstance(item, Result)
        return [*self._close(), item]

    def end(self) -> list[AgentEvent]:
        return [*self._close(), Result("".join(self._text))]

    def _say(self, text: str) -> list[AgentEvent]:
        if not text:
            return []
        if self._part is None:
            self._part = self._next_part
            self._next_part += 1
        self._text.append(text)
        return [TextDelta(self._part, text)]

    def _close(self) -> list[AgentEvent]:
        part, self._part = self._part, None
        return [] if part is None else [PartDone(part)]

"""From what an agent yields to what the log says."""

from __future__ import annotations

import time
from collections.abc import Awaitable, Callable
from typing import Any, Final, assert_never

from holdfast.domain.errors import RunEnded
from holdfast.domain.events import VALUE_BYTES_MAX, EventType, bounded
from holdfast.domain.runs import Reason
from holdfast.domain.secrets import mask, mask_value
from holdfast.engine.appender import Appender
from holdfast.engine.budgets import Budget
from holdfast.engine.soundness import sound
from holdfast.ports.agent import (
    AgentEvent,
    AttemptDiscarded,
    Checkpoint,
    Degraded,
    ModelRequested,
    ModelResponded,
    ModelRetried,
    PartDone,
    ReasoningDelta,
    Result,
    Steered,
    TextDelta,
    ToolArgs,
    ToolAsks,
    ToolCalled,
    ToolFinished,
    ToolProgress,
    ToolResponded,
    Waiting,
)
from holdfast.ports.probe import Probe

_PROGRESS_BYTES_MAX: Final = 16 * 1024


class Translator:
    """Puts an agent's events into the log of one claim, and waits where the contract says that it waits."""

    def __init__(
        self, appender: Appender, probe: Probe, may_begin: Callable[[], Awaitable[None]], budget: Budget
    ) -> None:
        """Take the log, and what stands before new model and tool calls: a gate, and a budget."""
        self._budget = budget
        self._appender = appender
        self._probe = probe
        self._may_begin = may_begin
        self._text_parts: dict[int, bool] = {}  # open parts: text, else reasoning
        self._called: dict[str, float] = {}
        self.result: Result | None = None
        self.waits: Waiting | None = None  # for decisions; nothing more is taken
        self.first_content_ms: int | None = None  # wall
        self.progress_at = time.monotonic()  # of the last event of the agent
        self.model_open = self.model_content = False  # a request without its response; something of that response

    def tool_ms(self, call: str) -> int | None:
        """How long ago a call was asked for."""
        since = self._called.get(call)
        return None if since is None else int((time.monotonic() - since) * 1000)

    def close_parts(self) -> None:
        """Parts that the agent left open are whole now."""
        for part in list(self._text_parts):
            self._done(part)

    async def take(self, event: AgentEvent) -> None:
        """One event. Returns when the agent may go on."""
        if self.result is not None:
            raise RunEnded(
                Reason.AGENT_ERROR, "after_result", f"the agent yielded {type(event).__name__} after its result"
            )
        self.progress_at = time.monotonic()
        event = sound(event)
        match event:
            case TextDelta() | ReasoningDelta():
                self._delta(event)
            case PartDone():
                self._done(event.part)
            case ToolArgs() | ToolCalled() | ToolProgress() | ToolFinished():
                self._tool(event)
                if isinstance(event, ToolCalled):
                    self._budget.after_call()
            case Checkpoint():
                self._appender.save(event.data)
                await self._appender.flush()
                await self._may_begin()
            case ModelRequested():
                self._budget.before_model(event.attempt)
                self.model_open, self.model_content = True, False
                self._put(EventType.MODEL_REQUESTED, step=event.step, model=event.model, attempt=event.attempt)
                await self._may_begin()
            case ToolAsks():
                self._budget.before_model(1)
                await self._may_begin()
            case ToolResponded():
                self._delegated(event)
            case ModelResponded() | ModelRetried() | AttemptDiscarded() | Degraded():
                self._model(event)
            case Steered():
                self._appender.put(EventType.STEERED, {"input": event.input}, event.checkpoint, consumed=event.n)
                await self._appender.flush()
            case Waiting():
                self.waits = event
            case Result():
                self.result = event
            case _:  # type annotations do not bind what users yield
                self._unknown(event)  # type: ignore[unreachable]
        await self._appender.room()
        self.progress_at = time.monotonic()  # what held the agent up meanwhile was the store, and has been said

    def late(self, events: list[AgentEvent]) -> None:
        """What had happened when the agent was ended, and was not yet told: the log must not know less than history."""
        for event in map(sound, events):
            match event:
                case TextDelta() | ReasoningDelta():
                    self._delta(event)
                case PartDone():
                    self._done(event.part)
                case ToolArgs() | ToolCalled() | ToolProgress() | ToolFinished():
                    self._tool(event)
                case ToolResponded():
                    self._delegated(event)
                case ModelResponded() | ModelRetried() | AttemptDiscarded() | Degraded():
                    self._model(event)
                case Checkpoint() | ToolAsks() | ModelRequested() | Steered() | Waiting() | Result():
                    pass  # nothing goes on from here, and nothing new began

    def _delta(self, event: TextDelta | ReasoningDelta) -> None:
        if not event.text:
            return
        self.model_content = True
        is_text = isinstance(event, TextDelta)
        if event.part not in self._text_parts:
            self._text_parts[event.part] = is_text
        if self.first_content_ms is None:
            self.first_content_ms = int(time.time() * 1000)
        kind = EventType.TEXT_DELTA if is_text else EventType.REASONING_DELTA
        self._put(kind, part=event.part, text=event.text)

    def _done(self, part: int) -> None:
        is_text = self._text_parts.pop(part, None)
        if is_text is None:  # nothing was ever said in it
            return
        kind = EventType.TEXT_DONE if is_text else EventType.REASONING_DONE
        self._put(kind, part=part, text=self._appender.fold.part_text(part))

    def _tool(self, event: ToolArgs | ToolCalled | ToolProgress | ToolFinished) -> None:
        match event:
            case ToolArgs():
                self._put(EventType.TOOL_ARGS, call=event.call, name=event.name, delta=event.delta)
            case ToolCalled():
                self._called[event.call] = time.monotonic()
                self._put(EventType.TOOL_CALLED, call=event.call, name=event.name, args=bounded(event.args))
            case ToolProgress():
                text = bounded(mask_value(event.text), _PROGRESS_BYTES_MAX)
                more = {"truncated": True, "bytes": event.bytes} if event.truncated else {}
                self._put(EventType.TOOL_PROGRESS, call=event.call, text=text, **more)
            case ToolFinished():
                fields = {
                    "call": event.call,
                    "name": event.name,
                    "outcome": event.outcome,
                    "result": bounded(_masked(event), VALUE_BYTES_MAX),
                    "duration_ms": event.duration_ms,
                }
                self._appender.put(EventType.TOOL_FINISHED, fields, event.checkpoint)
            case _:
                assert_never(event)

    def _model(self, event: ModelResponded | ModelRetried | AttemptDiscarded | Degraded) -> None:
        match event:
            case ModelResponded():
                self.model_open = False
                usage = self._budget.priced(event)
                self._put(
                    EventType.MODEL_RESPONDED,
                    step=event.step,
                    model=event.model,
                    finish_reason=event.finish_reason,
                    usage=usage,
                    ttft_ms=event.ttft_ms,
                    duration_ms=event.duration_ms,
                )
                self._blind(event, usage)
            case ModelRetried():
                self._put(
                    EventType.MODEL_RETRIED,
                    step=event.step,
                    attempt=event.attempt,
                    reason=mask(event.reason),
                    wait_ms=event.wait_ms,
                )
            case AttemptDiscarded():
                for part in event.parts:
                    self._text_parts.pop(part, None)
                self._put(
                    EventType.ATTEMPT_DISCARDED,
                    step=event.step,
                    reason=mask(event.reason),
                    parts=event.parts,
                    calls=event.calls,
                )
            case Degraded():
                self._put(EventType.DEGRADED, what=event.what, why=mask(event.why))
            case _:
                assert_never(event)

    def _delegated(self, event: ToolResponded) -> None:
        usage = self._budget.priced(event)
        self._put(
            EventType.TOOL_RESPONDED,
            call=event.call,
            model=event.model,
            finish_reason=event.finish_reason,
            usage=usage,
            duration_ms=event.duration_ms,
        )
        self._blind(event, usage)

    def _blind(self, event: ModelResponded | ToolResponded, usage: dict[str, Any]) -> None:
        for blind in self._budget.blind_to(event, usage):
            self._put(EventType.DEGRADED, what=blind.what, why=blind.why)

    def _put(self, kind: EventType, **fields: Any) -> None:
        self._appender.put(kind, fields)

    @staticmethod
    def _unknown(event: object) -> None:
        raise RunEnded(
            Reason.AGENT_ERROR,
            "unknown_event",
            f"the agent yielded {type(event).__name__}, which is no agent event",
            remedy="yield str, or the events of holdfast.ports.agent",
        )


def _masked(event: ToolFinished) -> Any:
    """A result without known secrets; what a failure says also without what looks like one."""
    failed = event.outcome != "success" and isinstance(event.result, str)
    return mask(event.result) if failed else mask_value(event.result)

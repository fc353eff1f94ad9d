"""What an agent yields, as the log can hold it: annotations do not bind what users write.

An event whose fields have other types than the port says ends its run here, by the agent's name and the field's. Text
that has no bytes (half of a surrogate pair, as a model's answer cut inside an emoji has) is mended here, once, so that
the log, the output, the session's history and the traces all say the same.
"""

from __future__ import annotations

from typing import Any, Final, TypeVar

import msgspec

from holdfast.domain.errors import RunEnded
from holdfast.domain.events import encodable
from holdfast.domain.runs import Reason
from holdfast.ports.agent import (
    AgentEvent,
    AttemptDiscarded,
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
)

E = TypeVar("E", bound=AgentEvent)

_TEXTS: Final[dict[type, tuple[str, ...]]] = {
    TextDelta: ("text",),
    ReasoningDelta: ("text",),
    ToolArgs: ("call", "name", "delta"),
    ToolCalled: ("call", "name"),
    ToolProgress: ("call", "text"),
    ToolFinished: ("call", "name", "outcome"),
    ToolAsks: ("call", "model"),
    ToolResponded: ("call", "model"),
    ModelRequested: ("model",),
    ModelResponded: ("model",),
    ModelRetried: ("reason",),
    AttemptDiscarded: ("reason",),
    Degraded: ("what", "why"),
    Steered: ("input",),
    Result: ("output",),
}
_NUMBERS: Final[dict[type, tuple[str, ...]]] = {
    TextDelta: ("part",),
    ReasoningDelta: ("part",),
    PartDone: ("part",),
    ModelRequested: ("step", "attempt"),
    ModelResponded: ("step", "duration_ms"),
    ToolResponded: ("duration_ms",),
    ModelRetried: ("step", "attempt", "wait_ms"),
    AttemptDiscarded: ("step",),
    Steered: ("n",),
}


def sound(event: E) -> E:
    """The event with text that can be encoded; the event itself, where it could be.

    Raises:
        RunEnded: A field has a value of another type than the port says.
    """
    kind = type(event)
    changes: dict[str, Any] = {}
    for name in _TEXTS.get(kind, ()):
        value = getattr(event, name)
        if not isinstance(value, str):
            raise _unsound(event, name, value, "str")
        text = encodable(value)
        if text is not value:
            changes[name] = text
    for name in _NUMBERS.get(kind, ()):
        value = getattr(event, name)
        if not isinstance(value, int):
            raise _unsound(event, name, value, "int")
    if isinstance(event, ToolFinished) and not isinstance(event.duration_ms, int | None):
        raise _unsound(event, "duration_ms", event.duration_ms, "int")
    return msgspec.structs.replace(event, **changes) if changes else event


def _unsound(event: object, name: str, value: object, wanted: str) -> RunEnded:
    kind = type(event).__name__
    return RunEnded(
        Reason.AGENT_ERROR,
        "agent_bad_event",
        f"the agent yielded a {kind} whose {name} is a {type(value).__name__}; it takes {wanted}",
        remedy=f"yield {kind} with {name} as {wanted}",
    )

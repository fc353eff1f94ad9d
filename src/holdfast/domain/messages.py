"""A conversation in neutral form: what a session's history is, whatever library ran the agent.

Agents of a library with a richer form keep that too (`HistoryEntry.native`); the neutral form is always there,
because a run that the reaper or the queue ended has nothing else.
"""

from __future__ import annotations

from typing import Any, Literal

import msgspec


class ToolCall(msgspec.Struct, frozen=True):
    """A tool that the model asked for. `args` is a JSON object, or text where the model sent no JSON."""

    call: str
    name: str
    args: Any


class ClientTool(msgspec.Struct, frozen=True, omit_defaults=True):
    """A tool that the client runs itself; `parameters` is a JSON schema."""

    name: str
    description: str = ""
    parameters: dict[str, Any] = {}
    strict: bool | None = None


class Message(msgspec.Struct, frozen=True, omit_defaults=True):
    """One message.

    role user: `text`. role assistant: `text` and `calls`; `interrupted` if it was cut short. role tool: the
    result of one call: `call`, `name`, `outcome` (as in tool.finished) and `result`.
    """

    role: Literal["user", "assistant", "tool"]
    text: str = ""
    calls: list[ToolCall] = []
    interrupted: bool = False
    call: str = ""
    name: str = ""
    outcome: str = ""
    result: Any = None


class HistoryEntry(msgspec.Struct, frozen=True):
    """What one ended run left in its session.

    Attributes:
        run: The run.
        state: How it ended.
        messages: The whole run in neutral form: input, answers, tool calls each with a result.
        native_kind: Which adapter wrote `native`, or "" where there is none.
        native: The adapter's own form of the run, opaque here: all of it, or up to its last checkpoint.
        tail: Neutral messages that came after `native`; empty where `native` is all of the run.
        before: What its client said was said before its input, and no earlier run of the session knows.
    """

    run: str
    state: str
    messages: list[Message]
    native_kind: str = ""
    native: bytes = b""
    tail: list[Message] = []
    before: list[Message] = []

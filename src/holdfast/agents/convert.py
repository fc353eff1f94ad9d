"""Neutral messages as pydantic-ai's: how a run that another adapter, the reaper or the queue ended is told to a model.

Timestamps are fixed, so that the same history gives the same bytes and a provider's prompt cache holds.
"""

from __future__ import annotations

import datetime as dt
import json
import re
from collections.abc import Iterable
from typing import Any, Final, Literal

from pydantic_ai.messages import (
    ModelMessage,
    ModelRequest,
    ModelRequestPart,
    ModelResponse,
    ModelResponsePart,
    TextPart,
    ToolCallPart,
    ToolReturnPart,
    UserPromptPart,
)

from holdfast.domain.messages import Message, ToolCall

NO_TIME: Final = dt.datetime(1970, 1, 1, tzinfo=dt.UTC)
Outcome = Literal["success", "failed", "denied", "interrupted"]

_OUTCOMES: Final[dict[str, Outcome]] = {
    "success": "success",
    "failed": "failed",
    "timeout": "failed",
    "unknown": "failed",
    "denied": "denied",
    "interrupted": "interrupted",
}
_NOT_IN_NAMES: Final = re.compile(r"[^A-Za-z0-9_-]")


def to_native(messages: Iterable[Message]) -> list[ModelMessage]:
    """One pydantic-ai message for each neutral one; not yet valid as a whole, see `history`."""
    return [_message(message) for message in messages]


def _message(message: Message) -> ModelMessage:
    match message.role:
        case "user":
            return _request(UserPromptPart(message.text, timestamp=NO_TIME))
        case "assistant":
            parts: list[ModelResponsePart] = [TextPart(message.text)] if message.text else []
            parts += [_call(call) for call in message.calls]
            state: Literal["complete", "interrupted"] = "interrupted" if message.interrupted else "complete"
            return ModelResponse(parts=parts, timestamp=NO_TIME, state=state)
        case "tool":
            return _request(
                ToolReturnPart(
                    tool_name=_name(message.name),
                    content=message.result,
                    tool_call_id=_name(message.call),
                    timestamp=NO_TIME,
                    outcome=_OUTCOMES.get(message.outcome, "success"),
                )
            )


def _request(part: ModelRequestPart) -> ModelRequest:
    return ModelRequest(parts=[part], timestamp=NO_TIME)


def _call(call: ToolCall) -> ToolCallPart:
    return ToolCallPart(tool_name=_name(call.name), args=_args(call.args), tool_call_id=_name(call.call))


def _args(args: Any) -> dict[str, Any]:
    """Arguments as the object that every provider asks for, whatever the model once wrote."""
    if isinstance(args, str):
        try:
            parsed = json.loads(args)
        except ValueError:
            return {"text": args}
        return parsed if isinstance(parsed, dict) else {"text": args}
    if isinstance(args, dict):
        return args
    return {} if args is None else {"value": args}


def _name(text: str) -> str:
    """Letters that every provider takes in the names and ids of tools."""
    return _NOT_IN_NAMES.sub("_", text) or "_"

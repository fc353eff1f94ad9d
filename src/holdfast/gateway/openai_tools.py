"""Tools and forms of the answer that a request of OpenAI's brings along, in either of its two APIs."""

from __future__ import annotations

import re
from collections.abc import Sequence
from typing import Any, Final

from holdfast.domain.events import EventType, encode_json
from holdfast.domain.messages import ClientTool, Message
from holdfast.gateway.gate import Gate
from holdfast.gateway.problems import invalid
from holdfast.ports.agent import AgentInfo

TOOLS_MAX: Final = 128
TOOLS_BYTES_MAX: Final = 1_048_576
_TAKE_TOOLS: Final = frozenset({"pydantic-ai"})  # kinds of agents whose loop can be left for the client's tools
_NAME: Final = re.compile(r"[A-Za-z0-9_-]{1,64}")
_FORMATS: Final = frozenset({"text", "json_object", "json_schema"})


def client_tools(tools: list[Any] | None, choice: Any, *, nested: bool) -> list[ClientTool]:
    """The tools that a request offers; none where its choice is none.

    Args:
        tools: As they were sent.
        choice: auto, none or nothing; a model that is forced to call a tool would never answer.
        nested: Whether a tool's fields stand in an object `function`, as in chat completions.
    """
    if choice not in (None, "auto", "none"):
        raise invalid("tool_choice: only auto and none can be asked for", param="tool_choice")
    if len(tools or []) > TOOLS_MAX or len(encode_json(tools)) > TOOLS_BYTES_MAX:
        raise invalid(f"tools: at most {TOOLS_MAX}, and {TOOLS_BYTES_MAX} bytes of them", param="tools")
    found = [_tool(tool, f"tools[{number}]", nested=nested) for number, tool in enumerate(tools or [])]
    names = [tool.name for tool in found]
    if len(set(names)) < len(names):
        raise invalid("tools: two have one name", param="tools")
    return [] if choice == "none" else found


def check_takes_tools(agent: str, served: list[AgentInfo]) -> None:
    """Raise invalid_request where the agent (no name: the first) has no loop that the client's tools fit into."""
    found = next((each for each in served if agent in ("", each.name)), None)
    if found is not None and found.kind not in _TAKE_TOOLS:
        raise invalid(f"agent {found.name} runs its own tools only, and takes none with a request", param="tools")


async def check_answers(gate: Gate, tenant: str, session: str, context: Sequence[Message], param: str) -> None:
    """Raise invalid_request where `context` has a result that no call of its own and none of the session asked for."""
    own = {call.call for message in context for call in message.calls}
    sent = [message.call for message in context if message.role == "tool" and message.call not in own]
    handed = await gate.sessions.handed(tenant, session) if sent else {}
    for call in sent:
        if call not in handed:
            raise invalid(
                f"{param}: the result of {call[:200]!r} answers no call that session {session} left to its client",
                param=param,
            )


def response_format(asked: dict[str, Any] | None, param: str, *, nested: bool) -> dict[str, Any]:
    """The form of the answer in the words of chat completions, as a setting for the model; {} for text."""
    kind = (asked or {}).get("type", "text")
    if asked is None or kind == "text":
        return {}
    if not isinstance(kind, str) or kind not in _FORMATS:
        raise invalid(f"{param}.type is none of {', '.join(sorted(_FORMATS))}", param=param)
    if kind == "json_object":
        return {"response_format": {"type": kind}}
    schema = asked.get("json_schema") if nested else {k: v for k, v in asked.items() if k != "type"}
    if not isinstance(schema, dict) or not isinstance(schema.get("name"), str):
        raise invalid(f"{param}: a json_schema has a name and a schema", param=param)
    return {"response_format": {"type": kind, "json_schema": schema}}


def _tool(tool: Any, place: str, *, nested: bool) -> ClientTool:
    if not isinstance(tool, dict) or tool.get("type") != "function":
        raise invalid(f"{place}: only tools of type function can be taken", param="tools")
    fields = tool.get("function") if nested else tool
    if not isinstance(fields, dict):
        raise invalid(f"{place}.function is missing", param="tools")
    name, said, parameters, strict = (fields.get(key) for key in ("name", "description", "parameters", "strict"))
    if not isinstance(name, str) or _NAME.fullmatch(name) is None:
        raise invalid(f"{place}: a name is 1 to 64 of [A-Za-z0-9_-]", param="tools")
    if (
        not isinstance(said, str | None)
        or not isinstance(parameters, dict | None)
        or not isinstance(strict, bool | None)
    ):
        raise invalid(f"{place}: description is text, parameters a JSON schema, strict true or false", param="tools")
    return ClientTool(name, said or "", parameters or {}, strict)


class Handed:
    """The calls that a run handed over to its client: those that are open when it completes. Fed the whole log."""

    def __init__(self) -> None:
        """None yet."""
        self._deltas: dict[str, list[str]] = {}
        self._open: dict[str, dict[str, Any]] = {}

    def feed(self, kind: str, event: dict[str, Any]) -> None:
        """Take the next event."""
        match kind:
            case EventType.TOOL_ARGS:
                self._deltas.setdefault(event["call"], []).append(str(event.get("delta") or ""))
            case EventType.TOOL_CALLED:
                args = event.get("args")
                written = "".join(self._deltas.pop(event["call"], ()))
                text = written or (args if isinstance(args, str) else encode_json(args or {}).decode())
                function = {"name": event["name"], "arguments": text}
                self._open[event["call"]] = {"id": event["call"], "type": "function", "function": function}
            case EventType.TOOL_FINISHED:
                self._open.pop(event["call"], None)
            case EventType.ATTEMPT_DISCARDED:
                for call in event.get("calls", ()):
                    self._open.pop(call, None)
                    self._deltas.pop(call, None)
            case _:
                pass

    def calls(self) -> list[dict[str, Any]]:
        """In the form of chat completions."""
        return list(self._open.values())

"""/ag-ui/{agent}: AG-UI 1.0. A thread is a session; a RunAgentInput starts a run, answers one, or comes back to one.

The protocol has one request. Which of the three it is follows from it: with `resume` it answers what the thread's run
waits for; with a `runId` that was sent before it comes back to that run; with a last message that is the user's, or the
result of a tool of the client's own, it starts a run; else it comes back to what is active.
"""

from __future__ import annotations

from typing import Annotated, Any, Literal

import msgspec
from starlette.requests import Request
from starlette.responses import Response

from holdfast.domain.errors import HoldfastError
from holdfast.domain.messages import Message
from holdfast.domain.runs import OnDisconnect, Policy, State
from holdfast.engine.sessions import StartRequest
from holdfast.gateway.ag_ui_encoder import AGUIEncoder, conversation, messages_of
from holdfast.gateway.ai_sdk import active_run, attended, last_wait
from holdfast.gateway.bodies import check_input, check_metadata, read_json
from holdfast.gateway.events import LogStream, Offset, open_log
from holdfast.gateway.gate import Gate
from holdfast.gateway.openai_tools import check_takes_tools, client_tools
from holdfast.gateway.problems import invalid
from holdfast.gateway.requests import tenant_of, trace_of
from holdfast.gateway.routes import Answer, Operation
from holdfast.gateway.runs import Deadline, Id, made
from holdfast.ports.store import RunRecord, Status

PROTOCOL = "ag-ui"


class AGUIMessage(msgspec.Struct, rename="camel"):
    """A message as the client has it; what came after the last answer is read, all are given back in a snapshot."""

    role: str
    content: Any = None
    tool_call_id: str = ""
    error: Any = None


class ResumeEntry(msgspec.Struct, rename="camel"):
    """An answer to one interrupt: for an approval `{approved, editedArgs?, reason?}`, else the call's result."""

    interrupt_id: str
    status: Literal["resolved", "cancelled"]
    payload: Any = msgspec.UNSET


class ForwardedProps(msgspec.Struct):
    """What is ours in forwardedProps; the rest is passed over."""

    on_busy: Policy | None = Policy.SUPERSEDE
    on_disconnect: OnDisconnect | None = OnDisconnect.CONTINUE
    deadline_s: Deadline | None = None
    metadata: dict[str, Any] | None = None


class AGUIContext(msgspec.Struct):
    """A fact that the client's application has for the agent."""

    description: str
    value: str


class RunAgentInput(msgspec.Struct, rename="camel"):
    """AG-UI's one request."""

    thread_id: Id
    run_id: Id
    messages: Annotated[list[dict[str, Any]], msgspec.Meta(max_length=10_000)] = []
    tools: list[Any] | None = None
    context: list[AGUIContext] | None = None
    forwarded_props: ForwardedProps | None = None
    resume: Annotated[list[ResumeEntry], msgspec.Meta(max_length=256)] | None = None


async def run_agent(gate: Gate, request: Request) -> Response:
    """POST /ag-ui/{agent}: start, answer or come back; the run's events either way."""
    body = await read_json(request, RunAgentInput, gate.settings.body_bytes)
    tenant, messages, agent = tenant_of(request), _checked(body.messages), _agent(gate, request)
    tools = client_tools(_functions(body.tools), None, nested=False)
    if body.resume:
        return await _answer(gate, request, body)
    asks = bool(messages) and messages[-1].role == "user"
    results = await _results(gate, tenant, body.thread_id, messages)
    if not (asks or results):
        record = await active_run(gate, tenant, body.thread_id)
        if record is None:
            raise invalid(
                "the last message is neither the user's nor the result of a tool of the client's, "
                "and nothing in this thread is active"
            )
        return await _stream(gate, record, body, back=True)
    if tools or results:
        check_takes_tools(agent, list(gate.sessions.agents()))
    extra = body.forwarded_props or ForwardedProps()
    created = await gate.sessions.start(
        tenant,
        StartRequest(
            input=check_input(_text(messages[-1].content), gate.settings.input_bytes) if asks else "",
            session=body.thread_id,
            agent=agent,
            context=results,
            remember=True,
            tools=tools,
            on_busy=extra.on_busy or Policy.SUPERSEDE,
            on_disconnect=extra.on_disconnect or OnDisconnect.CONTINUE,
            deadline_s=extra.deadline_s,
            metadata=check_metadata(extra.metadata or {}),
            instructions="\n".join(f"{each.description}: {each.value}" for each in body.context or ()),
            protocol=PROTOCOL,
            idempotency_key=f"ag-ui {body.thread_id[:100]} {body.run_id}",
            trace=trace_of(request),
            listens=True,
            listener_s=gate.settings.disconnect_grace_s,
        ),
    )
    return await _stream(gate, made(created), body, back=created.status is Status.EXISTS)


async def _results(gate: Gate, tenant: str, thread: str, messages: list[AGUIMessage]) -> list[Message]:
    """Results of the client's tools that came after the last answer: of calls that earlier runs handed over."""
    answered = max((n for n, message in enumerate(messages) if message.role == "assistant"), default=-1)
    sent = {message.tool_call_id: message for message in messages[answered + 1 :] if message.role == "tool"}
    if not sent:
        return []
    handed = await gate.sessions.handed(tenant, thread)
    return [_result(call, handed[call], message) for call, message in sent.items() if call in handed]


def _result(call: str, name: str, message: AGUIMessage) -> Message:
    failed = message.error not in (None, "")
    text = _text(message.content) or (str(message.error) if failed else "")
    return Message(role="tool", call=call, name=name, outcome="failed" if failed else "success", result=text)


def _functions(tools: list[Any] | None) -> list[Any] | None:
    """The client's tools in the form that OpenAI's APIs have them in; what is no object stays as it is."""
    return None if tools is None else [{**t, "type": "function"} if isinstance(t, dict) else t for t in tools]


async def _answer(gate: Gate, request: Request, body: RunAgentInput) -> Response:
    tenant = tenant_of(request)
    record = await active_run(gate, tenant, body.thread_id)
    if record is None:  # a repeated answer comes after the run went on to its end, too
        newest = await gate.sessions.list_runs(tenant, body.thread_id, None, 1, "")
        record = newest[0] if newest else None
    waits = {} if record is None else await last_wait(gate, record)
    if record is None or not waits:
        raise invalid("resume answers interrupts, and nothing in this thread waits for an answer")
    kinds = {each["call"]: each.get("kind") for each in waits["requests"]}
    decided = await gate.sessions.decide(record.key, [_decision(entry, kinds) for entry in body.resume or ()])
    return await _stream(gate, decided, body, after=waits["seq"])


async def _stream(
    gate: Gate, record: RunRecord, body: RunAgentInput, *, after: int = 0, back: bool = False
) -> Response:
    fresh = await gate.sessions.get(record.key) if back else record
    opening = await open_log(gate, record.key, Offset())
    waits = fresh.state is State.WAITING
    encoder = AGUIEncoder(
        record,
        body.thread_id,
        body.run_id,
        await _before(gate, record) if back or not body.messages else body.messages,
        after=fresh.seq - waits if back else after,
        through=fresh.seq - waits if back else 0,
        snapshot=back,
    )
    headers = {"X-Session-Id": record.session}
    return LogStream(gate, record.key, opening, encoder, headers=headers, around=attended(gate, record, encoder))


async def _before(gate: Gate, record: RunRecord) -> list[dict[str, Any]]:
    """The conversation up to a run, and its input."""
    history = await gate.sessions.history(record.key.tenant, record.session)
    runs = [entry.run for entry in history]
    said = history[: runs.index(record.key.run)] if record.key.run in runs else history
    asked = [{"id": f"{record.key.run}-m0", "role": "user", "content": record.spec.input}] if record.spec.input else []
    return [*conversation(said), *messages_of(record.key.run, record.spec.before, "b"), *asked]


def _decision(entry: ResumeEntry, kinds: dict[str, str | None]) -> dict[str, Any]:
    call = entry.interrupt_id
    if entry.status == "cancelled":
        return {"call": call, "approve": False, "message": "cancelled by the user"}
    if kinds.get(call) == "call":
        return {"call": call, "result": None if entry.payload is msgspec.UNSET else entry.payload}
    payload = entry.payload
    if not isinstance(payload, dict) or not isinstance(payload.get("approved"), bool):
        raise invalid(f"resume of {call[:200]!r}: payload is not {{approved: true or false}}")
    decision: dict[str, Any] = {"call": call, "approve": payload["approved"]}
    if payload["approved"] and payload.get("editedArgs") is not None:
        if not isinstance(payload["editedArgs"], dict):
            raise invalid(f"resume of {call[:200]!r}: editedArgs is not an object")
        decision["args"] = payload["editedArgs"]
    if payload.get("reason"):
        decision["message"] = str(payload["reason"])[:4000]
    return decision


def _agent(gate: Gate, request: Request) -> str:
    name = str(request.path_params["agent"])
    served = [agent.name for agent in gate.sessions.agents()]
    if served and name not in served:
        raise HoldfastError("unknown_agent", f"no agent {name[:200]!r}; served are {', '.join(served)}")
    return name


def _checked(messages: list[dict[str, Any]]) -> list[AGUIMessage]:
    try:
        return msgspec.convert(messages, list[AGUIMessage])
    except msgspec.ValidationError as error:
        raise invalid(f"messages do not fit: {error}") from error


def _text(content: Any) -> str:
    if content is None or isinstance(content, str):
        return content or ""
    parts = []
    for part in content if isinstance(content, list) else [content]:
        if not isinstance(part, dict) or part.get("type") != "text" or not isinstance(part.get("text"), str):
            raise invalid("a part of the last message is not text, which alone is supported")
        parts.append(part["text"])
    return "".join(parts)


OPERATIONS = (
    Operation(
        "POST",
        "/ag-ui/{agent}",
        run_agent,
        "AG-UI: start a run, answer it, or come back to it",
        (Answer(200, "The run as AG-UI events", text=("text/event-stream",)),),
        body=RunAgentInput,
        errors=(
            "unknown_agent",
            "unknown_run",
            "session_busy",
            "idempotency_conflict",
            "late_decision",
            "not_ready",
            "overloaded",
            "gone",
        ),
    ),
)

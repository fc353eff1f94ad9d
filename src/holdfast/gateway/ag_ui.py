"""/ag-ui/{agent}: AG-UI 1.0. A thread is a session; a RunAgentInput starts a run, answers one, or comes back to one.

The protocol has one request. Which of the three it is follows from it: with `resume` it answers what the thread's run
waits for; with a `runId` that was sent before it comes back to that run; with a last message that is not the user's it
comes back to what is active; else it starts a run.
"""

from __future__ import annotations

from typing import Annotated, Any, Literal

import msgspec
from starlette.requests import Request
from starlette.responses import Response

from holdfast.domain.errors import HoldfastError
from holdfast.domain.runs import OnDisconnect, Policy, State
from holdfast.engine.sessions import StartRequest
from holdfast.gateway.ag_ui_encoder import AGUIEncoder, conversation
from holdfast.gateway.ai_sdk import active_run, attended, last_wait
from holdfast.gateway.bodies import check_input, check_metadata, read_json
from holdfast.gateway.events import LogStream, Offset, open_log
from holdfast.gateway.gate import Gate
from holdfast.gateway.problems import invalid
from holdfast.gateway.requests import tenant_of, trace_of
from holdfast.gateway.routes import Answer, Operation
from holdfast.gateway.runs import Deadline, Id, made
from holdfast.ports.store import RunRecord, Status

PROTOCOL = "ag-ui"


class AGUIMessage(msgspec.Struct):
    """A message as the client has it; the last user message is read, all are given back in a snapshot."""

    role: str
    content: Any = None


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
    if body.tools:
        raise invalid("tools are the agent's own and run on the server; send none")
    messages = _checked(body.messages)
    if body.resume:
        return await _answer(gate, request, body)
    last = messages[-1] if messages else None
    if last is None or last.role != "user":
        record = await active_run(gate, tenant_of(request), body.thread_id)
        if record is None:
            raise invalid("the last message is not the user's, and nothing in this thread is active")
        return await _stream(gate, record, body, back=True)
    extra = body.forwarded_props or ForwardedProps()
    created = await gate.sessions.start(
        tenant_of(request),
        StartRequest(
            input=check_input(_text(last.content), gate.settings.input_bytes),
            session=body.thread_id,
            agent=_agent(gate, request),
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
    history = (await gate.sessions.view(record.key.tenant, record.session)).history
    runs = [entry.run for entry in history]
    said = history[: runs.index(record.key.run)] if record.key.run in runs else history
    return [*conversation(said), {"id": f"{record.key.run}-m0", "role": "user", "content": record.spec.input}]


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

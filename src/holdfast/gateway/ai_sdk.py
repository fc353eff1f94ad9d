"""/api/chat: what the AI SDK's `useChat` asks for, at its default paths. A chat is a session.

A message is either the user's, which starts a run, or the assistant's with answers to what its run waits for, which
are handed to it as decisions. Resuming is reading the run's stream from its start once more.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Annotated, Any

import msgspec
from starlette.requests import Request
from starlette.responses import Response

from holdfast.domain.errors import HoldfastError
from holdfast.domain.events import EventType, decode_event
from holdfast.domain.ids import ID_PATTERN, RunKey
from holdfast.domain.runs import OnDisconnect, Policy, State
from holdfast.engine.sessions import StartRequest
from holdfast.gateway.ai_sdk_encoder import UIMessageEncoder, message_id
from holdfast.gateway.bodies import check_id, check_input, check_metadata, idempotency_key, read_json
from holdfast.gateway.events import PAGE_EVENTS_MAX, STREAM_HEADERS, LogStream, Offset, open_log
from holdfast.gateway.gate import Gate
from holdfast.gateway.problems import invalid
from holdfast.gateway.requests import tenant_of, trace_of
from holdfast.gateway.routes import Answer, Operation, Query, answer
from holdfast.gateway.runs import BY, IDEMPOTENCY_KEY, Deadline, Id, Name, made
from holdfast.gateway.views import StoppedSession, run_view
from holdfast.ports.store import RunRecord

PROTOCOL = "ai-sdk"
_VERSION = {"x-vercel-ai-ui-message-stream": "v1"}


class UIApproval(msgspec.Struct):
    """What somebody answered to a request for approval."""

    id: str | None = None
    approved: bool | None = None
    reason: str | None = None


class UIPart(msgspec.Struct, rename="camel"):
    """A part of a message: of it, text and the answers to a waiting run are read."""

    type: str
    text: str | None = None
    tool_call_id: str | None = None
    state: str | None = None
    approval: UIApproval | None = None
    output: Any = None
    error_text: str | None = None


class UIMessage(msgspec.Struct):
    """A message of the chat as the client has it."""

    role: str
    parts: list[UIPart]
    id: str | None = None


class ChatRequest(msgspec.Struct, rename={"message_id": "messageId"}):
    """What the default transport sends; the fields from `agent` on are ours, set with the transport's `body`."""

    id: Id
    messages: Annotated[list[UIMessage], msgspec.Meta(min_length=1)]
    trigger: str | None = None
    message_id: str | None = None
    agent: Name | None = None
    on_busy: Policy | None = Policy.SUPERSEDE
    on_disconnect: OnDisconnect | None = OnDisconnect.CONTINUE
    deadline_s: Deadline | None = None
    metadata: dict[str, Any] | None = None


async def chat(gate: Gate, request: Request) -> Response:
    """POST /api/chat: start a run, or decide about what one waits for; its stream either way."""
    body = await read_json(request, ChatRequest, gate.settings.body_bytes)
    last = body.messages[-1]
    if last.role == "assistant":
        return await _decide(gate, request, body, last)
    if last.role != "user":
        raise invalid(f"the last message is of role {last.role[:40]!r}, not user or assistant")
    created = await gate.sessions.start(
        tenant_of(request),
        StartRequest(
            input=check_input(_text(last), gate.settings.input_bytes),
            session=body.id,
            agent=body.agent or "",
            on_busy=body.on_busy or Policy.SUPERSEDE,
            on_disconnect=body.on_disconnect or OnDisconnect.CONTINUE,
            deadline_s=body.deadline_s,
            metadata=check_metadata(body.metadata or {}),
            protocol=PROTOCOL,
            idempotency_key=idempotency_key(request),
            trace=trace_of(request),
            listens=True,
            listener_s=gate.settings.disconnect_grace_s,
        ),
    )
    return await _stream(gate, made(created))


async def resume_chat(gate: Gate, request: Request) -> Response:
    """GET /api/chat/{id}/stream: the stream of what is active, from its start; 204 where nothing is."""
    session, tenant = _chat_id(request), tenant_of(request)
    named = request.query_params.get("run")
    record = await (
        _named_run(gate, tenant, session, named) if named is not None else active_run(gate, tenant, session)
    )
    if record is None:
        return Response(status_code=204, headers={**STREAM_HEADERS, **_VERSION})
    return await _stream(gate, record, through=record.seq - (record.state is State.WAITING))


async def stop_chat(gate: Gate, request: Request) -> Response:
    """POST /api/chat/{id}/stop: stop what is active; idempotent."""
    session, tenant = _chat_id(request), tenant_of(request)
    record = await active_run(gate, tenant, session)
    stopped = None if record is None else await gate.sessions.stop(record.key, BY)
    return answer(StoppedSession(session, None if stopped is None else run_view(stopped)), 202)


async def _decide(gate: Gate, request: Request, body: ChatRequest, last: UIMessage) -> Response:
    tenant = tenant_of(request)
    record = await _asked(gate, tenant, body.id, last)
    if record is None:
        raise invalid("the last message is the assistant's, and nothing in this chat waits for an answer")
    waits = await last_wait(gate, record)
    decisions = _decisions(last, {each["call"]: each.get("kind") for each in waits.get("requests", ())})
    if not decisions:
        raise invalid("the last message is the assistant's and answers nothing that its run waits for")
    decided = await gate.sessions.decide(record.key, decisions)
    return await _stream(gate, decided, after=waits["seq"])


async def _stream(gate: Gate, record: RunRecord, *, after: int = 0, through: int = 0) -> Response:
    encoder = UIMessageEncoder(record, after=after, through=through)
    headers = {**_VERSION, "X-Session-Id": record.session}
    opening = await open_log(gate, record.key, Offset())
    return LogStream(gate, record.key, opening, encoder, headers=headers, around=attended(gate, record, encoder))


@contextmanager
def attended(gate: Gate, record: RunRecord, encoder: Any) -> Iterator[None]:
    """A reader of a run is there: one that is cancelled without a reader is not, until disconnect_grace_s after it."""
    if record.spec.on_disconnect != OnDisconnect.CANCEL or record.state.terminal:
        yield
        return
    with gate.listening(record.key, int(gate.settings.disconnect_grace_s * 1000)):
        yield
    if encoder.waiting:
        gate.excuse(record.key)


def _chat_id(request: Request) -> str:
    return check_id(request.path_params["id"], "the chat's id")


def _text(message: UIMessage) -> str:
    parts = []
    for part in message.parts:
        if part.type == "text":
            parts.append(part.text or "")
        elif part.type == "file":
            raise invalid("files in a message are not supported; send text")
    return "\n".join(parts)


async def active_run(gate: Gate, tenant: str, session: str) -> RunRecord | None:
    """The run to read or to stop: what is active, or what supersedes it."""
    try:
        active = (await gate.sessions.session(tenant, session)).active
    except HoldfastError as error:
        if error.code != "unknown_session":
            raise
        return None
    if active is None or active.stopping is None:
        return active
    newest = await gate.sessions.list_runs(tenant, session, None, 1, "")
    return next((record for record in newest if not record.state.terminal), active)


async def _named_run(gate: Gate, tenant: str, session: str, run: str) -> RunRecord:
    """A run that the client knows by its id; it may have ended."""
    record = await gate.sessions.get(RunKey(tenant, check_id(run, "run")))
    if record.session != session:
        raise HoldfastError("unknown_run", f"no run {run} in chat {session}", run=run)
    return record


async def _asked(gate: Gate, tenant: str, session: str, message: UIMessage) -> RunRecord | None:
    """The run whose message this is, or what is active where the client gave it another id."""
    run = (message.id or "").removeprefix(message_id(""))
    if message.id and message.id.startswith(message_id("")) and run:
        return await _named_run(gate, tenant, session, run)
    return await active_run(gate, tenant, session)


async def last_wait(gate: Gate, record: RunRecord) -> dict[str, Any]:
    """The last run.waiting of a log, or {}."""
    after, found = 0, dict[str, Any]()
    while after < record.seq:
        page = await gate.sessions.read(record.key, after, PAGE_EVENTS_MAX)
        if not page.events:
            break
        for data in page.events:
            after += 1
            if b'"type":"run.waiting"' in data[:256]:
                event = decode_event(data)
                found = event if event["type"] == EventType.RUN_WAITING else found
    return found


def _decisions(message: UIMessage, asked: dict[str, str | None]) -> list[dict[str, Any]]:
    """What the message's parts answer, as decisions."""
    found: list[dict[str, Any]] = []
    for part in message.parts:
        call = part.tool_call_id or ""
        if call not in asked:
            continue
        if asked[call] == "approval":
            if part.approval is None or part.approval.approved is None:
                continue
            said = {"message": part.approval.reason[:4000]} if part.approval.reason else {}
            found.append({"call": call, "approve": part.approval.approved, **said})
        elif part.state == "output-available":
            found.append({"call": call, "result": part.output})
        elif part.state == "output-error":
            found.append({"call": call, "approve": False, "message": (part.error_text or "it failed")[:4000]})
    return found


_STREAM = "The run as a UI message stream"
OPERATIONS = (
    Operation(
        "POST",
        "/api/chat",
        chat,
        "AI SDK: send a message, or answers to what a run waits for",
        (Answer(200, _STREAM, text=("text/event-stream",)),),
        body=ChatRequest,
        headers=(IDEMPOTENCY_KEY,),
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
    Operation(
        "GET",
        "/api/chat/{id}/stream",
        resume_chat,
        "AI SDK: resume the stream of what is active",
        (Answer(200, f"{_STREAM}, from its start", text=("text/event-stream",)), Answer(204, "Nothing is active")),
        query=(Query("run", "This run, though it may have ended", {"type": "string", "pattern": f"^{ID_PATTERN}$"}),),
        errors=("unknown_run", "gone", "invalid_request"),
    ),
    Operation(
        "POST",
        "/api/chat/{id}/stop",
        stop_chat,
        "AI SDK: stop what is active",
        (Answer(202, "The run that was active, or null", StoppedSession),),
        errors=("unknown_run", "invalid_request"),
    ),
)

"""/api/runs: start, look, stop, steer, edit and inspect."""

from __future__ import annotations

from typing import Annotated, Any

import msgspec
from starlette.requests import Request
from starlette.responses import Response

from holdfast.domain.events import VALUE_BYTES_MAX, encode_json
from holdfast.domain.ids import ID_PATTERN
from holdfast.domain.runs import OnDisconnect, Policy, State
from holdfast.engine.deciding import DECISIONS_MAX
from holdfast.engine.sessions import StartRequest
from holdfast.gateway.bodies import KEY_PATTERN, check_id, check_input, check_metadata, idempotency_key, read_json
from holdfast.gateway.events import NDJSON, SSE, LogStream, Offset, open_log
from holdfast.gateway.gate import Gate
from holdfast.gateway.mounting import outside
from holdfast.gateway.problems import invalid
from holdfast.gateway.requests import (
    PAGING,
    WAIT,
    asks_for,
    last_seen,
    page_limit,
    run_key,
    tenant_of,
    trace_of,
    wait_limit,
)
from holdfast.gateway.routes import Answer, Operation, Query, answer
from holdfast.gateway.views import RunList, RunView, run_view
from holdfast.ports.store import Created, RunRecord, Status

BY = "client"

Id = Annotated[str, msgspec.Meta(pattern=f"^{ID_PATTERN}$")]
Name = Annotated[str, msgspec.Meta(max_length=200)]
Deadline = Annotated[float, msgspec.Meta(gt=0, le=604_800)]


class StartBody(msgspec.Struct, forbid_unknown_fields=True):
    """A prompt. Without `session` a new one is made."""

    input: Annotated[str, msgspec.Meta(min_length=1)]
    session: Id | None = None
    agent: Name | None = None
    on_busy: Policy | None = Policy.SUPERSEDE
    on_disconnect: OnDisconnect | None = OnDisconnect.CONTINUE
    deadline_s: Deadline | None = None
    metadata: dict[str, Any] | None = None


class Decision(msgspec.Struct, forbid_unknown_fields=True, omit_defaults=True):
    """What becomes of one call that a run waits for: run it (with other `args`) or not, or its `result`."""

    call: Annotated[str, msgspec.Meta(min_length=1, max_length=512)]
    approve: bool | msgspec.UnsetType = msgspec.UNSET
    args: dict[str, Any] | msgspec.UnsetType = msgspec.UNSET
    message: Annotated[str, msgspec.Meta(max_length=4000)] | msgspec.UnsetType = msgspec.UNSET
    result: Any = msgspec.UNSET


class DecisionsBody(msgspec.Struct, forbid_unknown_fields=True):
    """Decisions about all the calls that a run waits for."""

    decisions: Annotated[list[Decision], msgspec.Meta(min_length=1, max_length=DECISIONS_MAX)]


class InputBody(msgspec.Struct, forbid_unknown_fields=True):
    """An input alone."""

    input: Annotated[str, msgspec.Meta(min_length=1)]


async def start(gate: Gate, request: Request) -> Response:
    """POST /api/runs: store a prompt; answer with its record, or with its stream if Accept names one."""
    body = await read_json(request, StartBody, gate.settings.body_bytes)
    form = asks_for(request, (SSE.media_type, NDJSON.media_type))
    asked = start_request(
        gate, body, idempotency_key=idempotency_key(request), trace=trace_of(request), listens=bool(form)
    )
    created = await gate.sessions.start(tenant_of(request), asked)
    record = made(created)
    status, headers = placed(created, request)
    if not form:
        return answer(run_view(record), status, headers)
    return LogStream(
        gate,
        record.key,
        await open_log(gate, record.key, Offset()),
        SSE() if form == SSE.media_type else NDJSON(),
        status=status,
        headers=headers,
        listens=body.on_disconnect is OnDisconnect.CANCEL and created.status is Status.OK,
    )


async def list_runs(gate: Gate, request: Request) -> Response:
    """GET /api/runs: newest first."""
    query = request.query_params
    limit = page_limit(request)
    session = query.get("session")
    found = await gate.sessions.list_runs(
        tenant_of(request),
        check_id(session, "session") if session is not None else None,
        _state(query.get("state")),
        limit + 1,
        last_seen(request),
    )
    more = found[limit - 1].key.run if len(found) > limit else None
    return answer(RunList([run_view(record, listed=True) for record in found[:limit]], more))


async def get_run(gate: Gate, request: Request) -> Response:
    """GET /api/runs/{run}: the record."""
    return answer(await _with_open(gate, await gate.sessions.get(run_key(request))))


async def _with_open(gate: Gate, record: RunRecord) -> RunView:
    """The record, with the calls that somebody has to decide about."""
    return run_view(record, waits_for=await gate.sessions.open_calls(record))


async def edit_run(gate: Gate, request: Request) -> Response:
    """PATCH /api/runs/{run}: another input, while it is queued."""
    key = run_key(request)
    body = await read_json(request, InputBody, gate.settings.body_bytes)
    text = check_input(body.input, gate.settings.input_bytes)
    return answer(run_view(await gate.sessions.edit_input(key, text)))


async def stop_run(gate: Gate, request: Request) -> Response:
    """POST /api/runs/{run}/stop: idempotent; `wait_s` waits for the end."""
    key, wait_s = run_key(request), wait_limit(request)
    record = await gate.sessions.stop(key, BY)
    if wait_s > 0 and not record.state.terminal:
        record = await gate.sessions.wait(key, wait_s)
    return answer(run_view(record), 202)


async def steer_run(gate: Gate, request: Request) -> Response:
    """POST /api/runs/{run}/steer: hand an input to an active run."""
    key = run_key(request)
    body = await read_json(request, InputBody, gate.settings.body_bytes)
    text = check_input(body.input, gate.settings.input_bytes)
    return answer(run_view(await gate.sessions.steer(key, text, idempotency_key(request))), 202)


async def decide_run(gate: Gate, request: Request) -> Response:
    """POST /api/runs/{run}/decisions: of all that a run waits for it goes on; of a part it waits on for the rest."""
    key = run_key(request)
    body = await read_json(request, DecisionsBody, gate.settings.body_bytes)
    idempotency_key(request)  # checked for its form; the decisions are their own key
    record = await gate.sessions.decide(key, decided(body.decisions), partly=True)
    return answer(await _with_open(gate, record), 202)


async def inspect_run(gate: Gate, request: Request) -> Response:
    """GET /api/runs/{run}/inspect: why it is not finished."""
    return answer(await gate.sessions.inspect(run_key(request)))


def start_request(gate: Gate, body: StartBody, *, idempotency_key: str, trace: str, listens: bool) -> StartRequest:
    """What a prompt asks for, whichever way it came; invalid_request where a part of it cannot be taken."""
    return StartRequest(
        input=check_input(body.input, gate.settings.input_bytes),
        session=check_id(body.session, "session") if body.session is not None else "",
        agent=body.agent or "",
        on_busy=body.on_busy or Policy.SUPERSEDE,
        on_disconnect=body.on_disconnect or OnDisconnect.CONTINUE,
        deadline_s=body.deadline_s,
        metadata=check_metadata(body.metadata or {}),
        idempotency_key=idempotency_key,
        trace=trace,
        listens=listens,
    )


def decided(decisions: list[Decision]) -> list[dict[str, Any]]:
    """Decisions as the log keeps them; invalid_request where they would not fit into an event of it."""
    found: list[dict[str, Any]] = msgspec.to_builtins(decisions)
    if len(encode_json(found)) > VALUE_BYTES_MAX:
        raise invalid(f"the decisions have more than {VALUE_BYTES_MAX} bytes")
    return found


def made(created: Created) -> RunRecord:
    """The record of an answer to start that has one, which every answer that is not raised has."""
    if created.record is None:
        raise RuntimeError(f"store answered {created.status} to create without a record")
    return created.record


def placed(created: Created, request: Request) -> tuple[int, dict[str, str]]:
    """The status of an answer to start, and the headers that name its run."""
    run = made(created).key.run
    headers = {"Location": outside(request, f"/api/runs/{run}"), "X-Run-Id": run}
    if created.status is Status.EXISTS:
        headers["Idempotent-Replayed"] = "true"
    return (202 if created.status is Status.STEERED else 201), headers


def _state(text: str | None) -> State | None:
    if text is None:
        return None
    try:
        return State(text)
    except ValueError:
        raise invalid(f"state={text[:64]!r} is none of {', '.join(State)}") from None


_RECORD = Answer(200, "The run record", RunView)
SESSION_ID = Query(
    "X-Session-Id", "The session to go on with; empty for none", {"type": "string", "pattern": f"^({ID_PATTERN})?$"}
)
IDEMPOTENCY_KEY = Query(
    "Idempotency-Key", "Repeating a request with its key repeats nothing", {"type": "string", "pattern": KEY_PATTERN}
)

OPERATIONS = (
    Operation(
        "POST",
        "/api/runs",
        start,
        "Start a run",
        (
            Answer(201, "The run record, or the run's stream", RunView, (SSE.media_type, NDJSON.media_type)),
            Answer(202, "Steered: the record of the active run, which reads the input", RunView),
        ),
        body=StartBody,
        headers=(IDEMPOTENCY_KEY,),
        errors=("unknown_agent", "session_busy", "idempotency_conflict", "not_ready", "overloaded", "gone"),
    ),
    Operation(
        "GET",
        "/api/runs",
        list_runs,
        "List runs, newest first",
        (Answer(200, "A page of records; inputs and outputs are cut", RunList),),
        query=(
            Query("session", "Of this session only", {"type": "string", "pattern": f"^{ID_PATTERN}$"}),
            Query("state", "In this state only", {"type": "string", "enum": [str(s) for s in State]}),
            *PAGING,
        ),
        errors=("invalid_request", "unknown_run"),
    ),
    Operation(
        "GET", "/api/runs/{run}", get_run, "Get a run's record", (_RECORD,), errors=("unknown_run", "invalid_request")
    ),
    Operation(
        "PATCH",
        "/api/runs/{run}",
        edit_run,
        "Replace the input of a queued run",
        (_RECORD,),
        body=InputBody,
        errors=("unknown_run", "already_ended"),
    ),
    Operation(
        "POST",
        "/api/runs/{run}/stop",
        stop_run,
        "Stop a run",
        (Answer(202, "The record, with `stopping` or with the end", RunView),),
        query=(WAIT,),
        errors=("unknown_run", "invalid_request"),
    ),
    Operation(
        "POST",
        "/api/runs/{run}/steer",
        steer_run,
        "Hand an input to an active run",
        (Answer(202, "The record of the run that will read it", RunView),),
        body=InputBody,
        headers=(IDEMPOTENCY_KEY,),
        errors=("unknown_run", "already_ended", "idempotency_conflict", "session_busy"),
    ),
    Operation(
        "POST",
        "/api/runs/{run}/decisions",
        decide_run,
        "Decide about the calls that a run waits for",
        (Answer(202, "The record of the run, which goes on", RunView),),
        body=DecisionsBody,
        headers=(IDEMPOTENCY_KEY,),
        errors=("unknown_run", "invalid_request", "late_decision"),
    ),
    Operation(
        "GET",
        "/api/runs/{run}/inspect",
        inspect_run,
        "Say why a run is not finished",
        (Answer(200, "What it waits on, since when, and its timers", dict[str, Any]),),
        errors=("unknown_run", "invalid_request"),
    ),
)

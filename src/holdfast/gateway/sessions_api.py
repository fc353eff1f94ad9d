"""/api/sessions and /api/workers: what was said, what waits, who works."""

from __future__ import annotations

import msgspec
from starlette.requests import Request
from starlette.responses import Response

from holdfast.gateway.gate import Gate
from holdfast.gateway.requests import (
    PAGING,
    WAIT,
    last_seen,
    page_limit,
    session_id,
    tenant_of,
    wait_limit,
)
from holdfast.gateway.routes import Answer, Operation, answer
from holdfast.gateway.runs import BY
from holdfast.gateway.views import (
    AgentView,
    SessionList,
    SessionPage,
    StoppedSession,
    Workers,
    run_view,
    session_item,
    session_page,
    worker_view,
)


async def list_sessions(gate: Gate, request: Request) -> Response:
    """GET /api/sessions: most recently used first."""
    limit = page_limit(request)
    found = await gate.sessions.list_sessions(tenant_of(request), limit + 1, last_seen(request))
    more = found[limit - 1].session if len(found) > limit else None
    return answer(SessionList([session_item(record) for record in found[:limit]], more))


async def get_session(gate: Gate, request: Request) -> Response:
    """GET /api/sessions/{session}: messages, active run, queue."""
    return answer(session_page(await gate.sessions.view(tenant_of(request), session_id(request))))


async def stop_session(gate: Gate, request: Request) -> Response:
    """POST /api/sessions/{session}/stop: stop what is active."""
    session, wait_s = session_id(request), wait_limit(request)
    record = await gate.sessions.stop_session(tenant_of(request), session, BY)
    if record is not None and wait_s > 0 and not record.state.terminal:
        record = await gate.sessions.wait(record.key, wait_s)
    return answer(StoppedSession(session, None if record is None else run_view(record)), 202)


async def delete_session(gate: Gate, request: Request) -> Response:
    """DELETE /api/sessions/{session}: stop its runs and forget it."""
    await gate.sessions.forget(tenant_of(request), session_id(request), BY)
    return Response(status_code=204, headers={"Cache-Control": "no-store"})


async def list_workers(gate: Gate, request: Request) -> Response:
    """GET /api/workers: who works, and what is served."""
    workers = [worker_view(record) for record in await gate.sessions.workers()]
    agents = [AgentView(**msgspec.structs.asdict(agent)) for agent in gate.sessions.agents()]
    return answer(Workers(workers, agents))


OPERATIONS = (
    Operation(
        "GET",
        "/api/sessions",
        list_sessions,
        "List sessions, most recently used first",
        (Answer(200, "A page of sessions", SessionList),),
        query=PAGING,
        errors=("invalid_request", "unknown_session"),
    ),
    Operation(
        "GET",
        "/api/sessions/{session}",
        get_session,
        "Get a session's messages, its active run and its queue",
        (Answer(200, "The session", SessionPage),),
        errors=("unknown_session", "invalid_request"),
    ),
    Operation(
        "DELETE",
        "/api/sessions/{session}",
        delete_session,
        "Stop a session's runs and forget it",
        (Answer(204, "It is forgotten"),),
        errors=("unknown_session", "invalid_request"),
    ),
    Operation(
        "POST",
        "/api/sessions/{session}/stop",
        stop_session,
        "Stop what is active in a session",
        (Answer(202, "The run that was active, or null", StoppedSession),),
        query=(WAIT,),
        errors=("unknown_session", "invalid_request"),
    ),
    Operation(
        "GET",
        "/api/workers",
        list_workers,
        "List workers and served agents",
        (Answer(200, "The workers that reported in the last minute", Workers),),
    ),
)

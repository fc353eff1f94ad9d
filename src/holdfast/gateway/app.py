"""The app: one route table, from which both routing and /openapi.json are made."""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from typing import Any

from starlette.middleware.cors import CORSMiddleware
from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Route, Router
from starlette.types import ASGIApp, Receive, Scope, Send

from holdfast.config import Settings
from holdfast.domain.errors import HoldfastError
from holdfast.engine.sessions import Sessions
from holdfast.gateway import (
    ag_ui,
    ai_sdk,
    durable_streams,
    events,
    health,
    live,
    metrics,
    openai_chat,
    openai_responses,
    openapi,
    page,
    reference,
    runs,
    sessions_api,
    ws,
)
from holdfast.gateway.access import Access
from holdfast.gateway.gate import Gate
from holdfast.gateway.guards import Guard
from holdfast.gateway.mounting import unmounted
from holdfast.gateway.routes import Handler, Operation
from holdfast.telemetry import Log

_PREFLIGHT_S = 600
# What a page of another origin may read of an answer; the rest its browser hides from it.
_EXPOSED = (
    "X-Run-Id",
    "Location",
    "Retry-After",
    "Idempotent-Replayed",
    "X-Holdfast-Rehearsal",
    "X-Session-Id",
    "Stream-Next-Offset",
    "Stream-Up-To-Date",
    "Stream-Closed",
    "Stream-Cursor",
    "ETag",
)

OPERATIONS: tuple[Operation, ...] = (
    *runs.OPERATIONS,
    *events.OPERATIONS,
    *live.OPERATIONS,
    *sessions_api.OPERATIONS,
    *openai_chat.OPERATIONS,
    *ai_sdk.OPERATIONS,
    *openai_responses.OPERATIONS,
    *ag_ui.OPERATIONS,
    *durable_streams.OPERATIONS,
    *health.OPERATIONS,
    *metrics.OPERATIONS,
    *openapi.OPERATIONS,
    *reference.OPERATIONS,
    *page.OPERATIONS,
)


class GatewayApp:
    """The ASGI app, and the end of it."""

    def __init__(self, gate: Gate) -> None:
        """Route every operation to its handler, behind the guard."""
        self._gate = gate
        gate.description = openapi.describe(OPERATIONS, str(gate.version.get("version", "")))
        self._router = Router(_routes(gate), redirect_slashes=False)
        self._guarded: ASGIApp = Guard(self._route, gate.log, gate.access, gate.limits)
        if gate.access.origins:
            self._guarded = CORSMiddleware(
                self._guarded,
                allow_origins=sorted(gate.access.origins),
                allow_methods=["GET", "HEAD", "POST", "PATCH", "DELETE"],
                allow_headers=["*"],
                expose_headers=_EXPOSED,
                max_age=_PREFLIGHT_S,
            )

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Serve one request, or one WebSocket; mounted below a path of another app, as at the root."""
        await self._guarded(unmounted(scope), receive, send)

    @property
    def settings(self) -> Settings:
        """Limits and times."""
        return self._gate.settings

    @property
    def readers(self) -> int:
        """How many streaming responses and WebSockets are open."""
        return self._gate.readers

    def facts(self) -> dict[str, Any]:
        """How many of everything this process has; on its loop."""
        return self._gate.facts()

    def count_connections(self, connections: Callable[[], int]) -> None:
        """Whom /metrics and `facts` ask for the number of connections: the server, which is made after the app."""
        self._gate.connections = connections

    async def drain(self, limit_s: float, hurried: Callable[[], bool]) -> None:
        """Wait for the streams that cannot be resumed at another gateway; bounded."""
        await self._gate.drain(limit_s, hurried)

    def close_readers(self) -> None:
        """Not ready from now on; every stream ends at once, and its reader resumes at another gateway or later."""
        self._gate.close_readers()

    async def close(self, grace_s: float = 1.0) -> list[str]:
        """End the gateway's own tasks; the names of those that did not end in time."""
        self._gate.close_readers()
        return await self._gate.owner.close(grace_s)

    async def _route(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["path"] == ws.PATH:
            if scope["type"] == "http":
                raise HoldfastError("upgrade_required", f"{ws.PATH} is a WebSocket")
            await ws.Socket(self._gate, scope, receive, send).serve()
        elif scope["type"] == "http":
            await self._router(scope, receive, send)
        else:
            raise HoldfastError("not_found", f"no WebSocket at {scope['path'][:200]}; there is one at {ws.PATH}")


def create_app(
    sessions: Sessions,
    settings: Settings,
    log: Log,
    *,
    version: dict[str, Any],
    ready: Callable[[], Awaitable[dict[str, Any]]],
    startup: Callable[[], dict[str, Any]] | None = None,
    access: Access | None = None,
) -> GatewayApp:
    """Make the gateway.

    Args:
        sessions: The engine.
        settings: Limits and times.
        log: Where failures nobody foresaw are written.
        version: Answered by /version: at least `version`.
        ready: Answers `{"ready": bool, "parts": {name: {"ok": bool, "why": str}}}`; it may hang or raise.
        startup: Answers `{"started": bool, "phases": [...]}`, without waiting.
        access: Who may enter; made of the settings where it is not given.

    Raises:
        BadKeys: It has to be made, and the keys of the settings cannot be read.
    """
    started = startup or (lambda: {"started": True, "phases": []})
    return GatewayApp(Gate(sessions, settings, log, version, ready, started, access or Access(settings, log)))


def _routes(gate: Gate) -> list[Route]:
    by_path: dict[str, dict[str, Handler]] = {}
    for operation in OPERATIONS:
        by_path.setdefault(operation.path, {})[operation.method] = operation.handler
    return [_route(gate, path, handlers) for path, handlers in by_path.items()]


def _route(gate: Gate, path: str, handlers: dict[str, Handler]) -> Route:
    async def serve(request: Request) -> Response:
        method = "GET" if request.method == "HEAD" else request.method
        return await handlers[method](gate, request)

    return Route(path, serve, methods=list(handlers))

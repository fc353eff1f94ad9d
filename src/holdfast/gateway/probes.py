"""What `holdfast worker` answers over HTTP: is it up, does it take runs, how did it start, what has it counted.

It has the surface of `GatewayApp` and none of its runs: no prompt, no stream, no stop comes in here. Whoever may ask
is decided as at a gateway. The process that answers runs no user code, so that a worker whose loop is blocked, or
that is stopped, is told of and not waited for.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Mapping
from typing import Any, Final

from starlette.requests import HTTPConnection
from starlette.responses import Response
from starlette.types import Receive, Scope, Send

from holdfast.aio import Owner
from holdfast.config import Settings
from holdfast.domain.errors import HoldfastError
from holdfast.gateway.access import READ, Access, check_scope
from holdfast.gateway.checks import Check, Facts
from holdfast.gateway.guards import check_local
from holdfast.gateway.health import ready_answer, started_answer
from holdfast.gateway.metrics import exposed, measure
from holdfast.gateway.problems import respond, unexpected
from holdfast.gateway.routes import answer
from holdfast.telemetry import Log, WorkersTotals

PATHS: Final = ("/livez", "/readyz", "/startupz", "/metrics")
_METHODS: Final = ("GET", "HEAD")

Ask = Callable[[], Awaitable[Facts]]


class ProbeApp:
    """Probes and metrics of a process that has workers and no gateway.

    Attributes:
        closing: Not ready from now on: its workers drain.
    """

    readers: Final = 0

    def __init__(
        self,
        settings: Settings,
        log: Log,
        access: Access,
        version: Mapping[str, Any],
        ready: Ask,
        store: Ask,
        workers: Ask,
        startup: Callable[[], Facts],
    ) -> None:
        """Take what is asked; each of the three may hang or raise.

        Args:
            settings: Limits and times of the server in front of it.
            log: Where failures nobody foresaw are written.
            access: Who may enter. Without keys Host and Origin have to be local.
            version: For holdfast_build_info.
            ready: Answers `{"ready", "parts"}`.
            store: Answers the store's facts.
            workers: Answers the facts of the workers of this process, by name.
            startup: Answers `{"started", "phases"}`, without waiting.
        """
        self.settings = settings
        self.log = log
        self.access = access
        self.version = dict(version)
        self.owner = Owner(lambda name, error: log.write("task_failed", task=name, error=repr(error)))
        self.ready = Check(self.owner, "ready", ready)
        self.store = Check(self.owner, "store", store)
        self.workers = Check(self.owner, "workers", workers)
        self.worker_totals = WorkersTotals()
        self.closing = False
        self._startup = startup

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Serve one request; a WebSocket is refused before it opens."""
        if scope["type"] not in ("http", "websocket"):
            raise RuntimeError(f"probes are served over http, not {scope['type']}")
        path = scope["path"]
        try:
            if self.access.keyless:
                check_local(scope)
            response = await self._answer(scope, path)
        except HoldfastError as error:
            response = respond(error, path)
        except Exception as error:  # noqa: BLE001 - the outer edge of a request: logged, answered, never raised on
            response = respond(unexpected(error, path, self.log), path)
        await response(scope, receive, send)

    async def _answer(self, scope: Scope, path: str) -> Response:
        connection = HTTPConnection(scope)
        if scope["type"] != "http" or path not in PATHS:
            raise HoldfastError("not_found", f"no such path: {path[:200]}", remedy=f"a worker has {', '.join(PATHS)}")
        if scope["method"] not in _METHODS:
            raise HoldfastError("method_not_allowed", f"wrong method for {path}", remedy="use GET")
        if path == "/livez":
            return answer({"status": "up"})
        if path == "/metrics":
            check_scope(await self.access.admit(connection), READ)
            scrape, _ = await measure(self, "supervisor")
            return exposed(scrape)
        known = await self.access.knows(connection)
        if path == "/startupz":
            return started_answer(self._startup(), known=known)
        found, why = await self.ready.answer()
        return ready_answer(found, why, closing=self.closing, known=known)

    def count_connections(self, connections: Callable[[], int]) -> None:
        """Nobody asks for them."""

    def close_readers(self) -> None:
        """There are none."""

    async def close(self, grace_s: float = 1.0) -> list[str]:
        """End the questions that are open; the names of those that did not end in time."""
        return await self.owner.close(grace_s)

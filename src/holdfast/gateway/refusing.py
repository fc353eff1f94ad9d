"""What a server answers whose start failed: that it did, and why. It takes no run, and makes nothing up.

It stands where the real app would, so that whoever looks finds the reason: /livez is 200, as the process is up;
/readyz, /startupz and everything else are 503 with the report of the start.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any, Final

from starlette.requests import HTTPConnection
from starlette.responses import Response
from starlette.types import Receive, Scope, Send

from holdfast.config import Settings
from holdfast.domain.errors import HoldfastError
from holdfast.gateway.access import Access
from holdfast.gateway.guards import check_local
from holdfast.gateway.problems import PROBLEM_TYPE, document, respond
from holdfast.gateway.routes import answer
from holdfast.telemetry.exposition import CONTENT_TYPE, refusing

RETRY_AFTER_S: Final = 5
_LIVE: Final = "/livez"
_VERSION: Final = "/version"
_METRICS: Final = "/metrics"
_REPORTS: Final = frozenset({"/readyz", "/startupz", "/health"})


class RefusingApp:
    """Has the surface of `GatewayApp`, and none of its parts."""

    readers: Final = 0

    def __init__(
        self, settings: Settings, version: Mapping[str, Any], report: dict[str, Any], why: str, access: Access
    ) -> None:
        """Take what is answered.

        Args:
            settings: Limits and times of the server in front of it.
            version: Answered by /version.
            report: The phases of the start.
            why: What failed, in one line.
            access: Who may enter. Without keys Host and Origin have to be local; with them strangers are not told why.
        """
        self.settings = settings
        self._version = version
        self._access = access
        self._stranger = HoldfastError("not_ready", "the server could not start", retry_after_s=RETRY_AFTER_S)
        self.tell(report, why)

    def tell(self, report: dict[str, Any], why: str) -> None:
        """From now on answer this: the start was tried again, and failed again."""
        self._report = report
        self._error = HoldfastError(
            "not_ready",
            f"the server could not start: {why}",
            remedy="see /startupz for each phase, mend what failed; it is tried again by itself",
            retry_after_s=RETRY_AFTER_S,
        )

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Serve one request; a WebSocket is refused before it opens."""
        if scope["type"] not in ("http", "websocket"):
            raise RuntimeError(f"the gateway serves http and websocket, not {scope['type']}")
        path = scope["path"]
        try:
            if self._access.keyless:
                check_local(scope)
            response = self._answer(path, known=await self._access.knows(HTTPConnection(scope)))
        except HoldfastError as error:
            response = respond(error, path)
        await response(scope, receive, send)

    def _answer(self, path: str, *, known: bool) -> Response:
        if path == _LIVE:
            return answer({"status": "up"})
        if path == _VERSION:
            return answer(self._version)
        if not known:
            return respond(self._stranger, path)
        if path == _METRICS:
            return Response(refusing(self._version).render(), media_type=CONTENT_TYPE)
        if path not in _REPORTS:
            return respond(self._error, path)
        parts = {found["phase"]: {"ok": found["ok"], "why": found["why"]} for found in self._report["phases"]}
        body = {"ready": False, **self._report, "parts": parts, **document(self._error)}
        response = answer(body, 503, {"Retry-After": str(RETRY_AFTER_S)})
        response.headers["content-type"] = PROBLEM_TYPE
        return response

    def count_connections(self, connections: Callable[[], int]) -> None:
        """Nobody asks for them."""

    def close_readers(self) -> None:
        """There are none."""

    async def close(self, grace_s: float = 1.0) -> list[str]:
        """Nothing is left behind."""
        return []

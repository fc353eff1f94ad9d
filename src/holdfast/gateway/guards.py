"""What a request passes before its handler: who it is from, its tenant's limits, and the last net for errors.

Without keys the server trusts whoever reaches it on loopback, and a browser reaches it on behalf of any page. So a
page of a foreign origin is refused, and so is a Host that is not a loopback name: that is how DNS rebinding makes a
foreign page look like one of ours. With keys neither matters: no browser sends a key that a page did not give it.
"""

from __future__ import annotations

import ipaddress
import time
from collections.abc import Iterable
from urllib.parse import urlsplit

from starlette.datastructures import Headers
from starlette.exceptions import HTTPException
from starlette.requests import HTTPConnection
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from holdfast.domain.errors import HoldfastError
from holdfast.gateway.access import OPEN, SYNTHETIC, Access, check_scope, remember, scope_of
from holdfast.gateway.bodies import ClientGone
from holdfast.gateway.limits import TenantLimits
from holdfast.gateway.problems import from_http, respond, unexpected
from holdfast.gateway.requests import TRACEPARENT
from holdfast.telemetry import Log

_METHODS = frozenset({"GET", "HEAD", "POST", "PUT", "PATCH", "DELETE", "OPTIONS"})
_STARTS = ("http.response.start", "websocket.accept")


class Guard:
    """Refuses strangers; turns what a handler did not foresee into a problem and a log line."""

    def __init__(self, app: ASGIApp, log: Log, access: Access, limits: TenantLimits) -> None:
        """Wrap the routed app; without keys Host and Origin are checked."""
        self._app = app
        self._log = log
        self._access = access
        self._limits = limits

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Serve one request, or one WebSocket; nothing is raised to the server but cancellation."""
        if scope["type"] not in ("http", "websocket"):
            raise RuntimeError(f"the gateway serves http and websocket, not {scope['type']}")
        started = False

        async def sending(message: Message) -> None:
            nonlocal started
            started = started or message["type"] in _STARTS
            if message["type"] == "http.response.start":
                heard.status, heard.headers = message["status"], message.get("headers", ())
            await send(message)

        path, heard = scope["path"], Heard(scope)
        scope["app"] = self  # makes the router raise what it refuses, and not answer by itself
        try:
            if self._access.keyless:
                check_local(scope)
                check_peer(scope)
            if scope["type"] == "http" and path not in OPEN:
                await self._admitted(scope, receive, sending)
            else:  # a socket asks by itself, once it can say by its close code why not
                await self._app(scope, receive, sending)
        except ClientGone:
            return
        except HoldfastError as error:
            if not started:
                await respond(error, path)(scope, receive, sending)
        except HTTPException as error:
            await from_http(error, path)(scope, receive, sending)
        except Exception as error:  # noqa: BLE001 - the outer edge of a request: logged, answered, never raised on
            problem = unexpected(error, path, self._log)
            if not started:
                await respond(problem, path)(scope, receive, sending)
        finally:
            if scope["type"] == "http" and not synthetic(
                scope
            ):  # a socket has no duration that says anything; what it does is in its runs
                heard.tell(self._log)

    async def _admitted(self, scope: Scope, receive: Receive, send: Send) -> None:
        who = await self._access.admit(HTTPConnection(scope))
        check_scope(who, scope_of(scope["method"]))
        remember(scope, who)
        if who is SYNTHETIC:  # it takes nobody's place, and nobody takes its
            await self._app(scope, receive, send)
            return
        self._limits.take(who.tenant)
        with self._limits.under_way(who.tenant):
            await self._app(scope, receive, send)


class Heard:
    """What telemetry is told of a request, once it has ended."""

    def __init__(self, scope: Scope) -> None:
        """Begin now."""
        self.status = 0  # none was sent: the client was gone
        self.headers: Iterable[tuple[bytes, bytes]] = ()
        self._scope = scope
        self._began_ns = time.time_ns()

    def tell(self, log: Log) -> None:
        """Once, at the end: never raises, never waits."""
        try:
            self._tell(log)
        except Exception:  # noqa: BLE001 - P6: a request is over when it is over; the fault is counted
            log.telemetry.failed += 1

    def _tell(self, log: Log) -> None:
        scope = self._scope
        route = getattr(scope.get("route"), "path", "other")
        method = scope["method"] if scope["method"] in _METHODS else "other"
        log.telemetry.request(method, route, self.status, self._began_ns, self._made(), self._traceparent())

    def _made(self) -> str:
        """The run that the request made, or ""."""
        if self._scope["method"] != "POST" or self._scope.get("path_params"):
            return ""
        answered = {name.lower(): value for name, value in self.headers}
        if b"idempotent-replayed" in answered or self.status == 202:
            return ""
        return answered.get(b"x-run-id", b"").decode("ascii", "replace")

    def _traceparent(self) -> str:
        found = Headers(scope=self._scope).get("traceparent", "")
        return found if TRACEPARENT.fullmatch(found) else ""


def synthetic(scope: Scope) -> bool:
    """Whether this is a request of the server to itself."""
    return scope.get("holdfast.identity") is SYNTHETIC


def check_local(scope: Scope) -> None:
    """Raise forbidden_origin unless Host is a loopback name, and Origin is absent or one too.

    HTTP/1.0 has no Host: a proxy's health check sends none. A browser always does, so no foreign page gets in by that.
    """
    headers = Headers(scope=scope)
    host = headers.get("host", "localhost" if scope.get("http_version") == "1.0" else "")
    if not is_loopback(_host_name(f"//{host}")):
        raise HoldfastError("forbidden_origin", f"Host {host[:200]!r} is not a loopback name")
    origin = headers.get("origin")
    if origin is not None and not is_loopback(_host_name(origin)):
        raise HoldfastError("forbidden_origin", f"Origin {origin[:200]!r} is not on this machine")


def check_peer(scope: Scope) -> None:
    """Raise forbidden_origin for a client on another machine: mounted, we listen where somebody else decided."""
    client = scope.get("client")
    if client is not None and client[0] and not is_loopback(client[0]):  # a socket of this machine's files has no name
        raise HoldfastError("forbidden_origin", f"a client at {client[0][:200]!r} is not on this machine")


def is_loopback(name: str) -> bool:
    """Whether a host name means this machine and nothing else."""
    if name == "localhost" or name.endswith(".localhost"):
        return True
    try:
        address = ipaddress.ip_address(name)
    except ValueError:
        return False
    return address.is_loopback


def _host_name(url: str) -> str:
    try:
        return urlsplit(url).hostname or ""
    except ValueError:
        return ""

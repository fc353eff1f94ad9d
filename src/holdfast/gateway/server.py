"""The HTTP server: uvicorn with the bounds that it does not bring, started and stopped by the composition root.

What is added to uvicorn, and why:
- a limit on connections, answered with a problem and not with text; probes are let through a little longer
- a limit on the size of a request's head and on the time it may take (uvicorn waits for ever for a first request)
- TCP_USER_TIMEOUT, so that a client that vanished without a word is noticed
- answers to HTTP/1.0 without chunks
- an answer to what is no request that says what was wrong, as a problem; and none into the middle of another answer
- `holdfast.abort`, so that a connection whose client takes nothing can be dropped with its unsent bytes
Signals are not taken: `stop()` is the only way to end it.
"""

from __future__ import annotations

import asyncio
import logging
import socket
import sys
from http import HTTPStatus
from typing import Any

import httptools
import uvicorn
from starlette.responses import Response
from starlette.types import Receive, Scope, Send
from uvicorn.protocols.http.httptools_impl import HttpToolsProtocol, RequestResponseCycle

from holdfast.aio import Owner, closed_here, not_for_forks, settle
from holdfast.domain.errors import HoldfastError
from holdfast.gateway import http_1_0
from holdfast.gateway.app import GatewayApp
from holdfast.gateway.probes import ProbeApp
from holdfast.gateway.problems import respond
from holdfast.gateway.readers import ABORT, STUCK_S
from holdfast.gateway.refusing import RefusingApp
from holdfast.gateway.ws_protocol import PING_TIMEOUT_S, BoundedWebSocket
from holdfast.telemetry import Log

HEAD_BYTES_MAX = 65_536
HEAD_S = 10.0
KEEP_ALIVE_S = 15
PROBE_CONNECTIONS = 64  # above the limit, for /livez and its like
_PROBES = frozenset({"/livez", "/readyz", "/startupz", "/health", "/metrics"})
_BACKLOG = 1024
_TICK_S = 0.1  # uvicorn looks this often whether it should end


class BindError(HoldfastError):
    """The address cannot be listened on."""

    def __init__(self, host: str, port: int, cause: OSError) -> None:
        """Name the address and what the system said."""
        super().__init__(
            "not_ready",
            f"cannot listen on {host}:{port}: {cause.strerror or cause}",
            remedy="end what listens there, or choose another --port (0 takes a free one) or --host",
        )


class Server:
    """Serves one app on one port."""

    def __init__(
        self, app: GatewayApp | RefusingApp | ProbeApp, host: str, port: int, *, connections: int, log: Log
    ) -> None:
        """Nothing is opened yet.

        Args:
            app: What answers.
            host: A name or an address.
            port: 0 takes a free one; `port` then tells which.
            connections: At most this many, probes aside.
            log: Where uvicorn's own warnings go.
        """
        self.host = host
        self.port = port
        self._app = app
        self._connections = connections
        self._log = log
        self._owner = Owner(self._failed)
        self._server: uvicorn.Server | None = None
        self._serving: asyncio.Task[None] | None = None
        self._listener = -1
        self._handler = _ToLog(log)
        app.count_connections(lambda: len(self.connections))

    @property
    def connections(self) -> list[HttpToolsProtocol]:
        """The open connections."""
        return [] if self._server is None else list(self._server.server_state.connections)  # type: ignore[arg-type]

    async def start(self, limit_s: float = 10.0) -> None:
        """Listen; when this returns, requests are answered.

        Raises:
            BindError: The port is taken, or the address is not one of this machine.
        """
        sock = await _bind(self.host, self.port)
        self.port = sock.getsockname()[1]
        logger = logging.getLogger("uvicorn.error")
        logger.addHandler(self._handler)
        logger.propagate = False
        config = uvicorn.Config(
            self._app,
            http=_protocol(self._connections),
            ws=BoundedWebSocket,
            ws_max_size=self._app.settings.body_bytes,
            ws_ping_interval=self._app.settings.keepalive_s,
            ws_ping_timeout=PING_TIMEOUT_S,
            ws_per_message_deflate=False,
            lifespan="off",
            log_config=None,
            access_log=False,
            server_header=False,
            proxy_headers=False,
            timeout_keep_alive=KEEP_ALIVE_S,
            timeout_graceful_shutdown=1,
            backlog=_BACKLOG,
        )
        self._listener = sock.fileno()
        not_for_forks(self._listener)
        self._server = _Unsignalled(config)
        self._serving = self._owner.spawn(self._server.serve([sock]), "http server")
        until = asyncio.get_running_loop().time() + limit_s
        while not self._server.started:
            if self._serving.done() or asyncio.get_running_loop().time() > until:
                raise HoldfastError("not_ready", f"the HTTP server did not start within {limit_s:.0f} s")
            await asyncio.sleep(0.005)

    async def stop(self, grace_s: float = 3.0) -> None:
        """Take no new connection, close the streams, let other requests end; bounded by `grace_s`."""
        server, serving = self._server, self._serving
        if server is None or serving is None:
            return
        self._app.close_readers()
        server.config.timeout_graceful_shutdown = max(1, int(grace_s))
        server.should_exit = True
        await settle([serving], grace_s + 2 * _TICK_S)
        for connection in list(server.server_state.connections):
            connection.transport.abort()
        closed_here(self._listener)
        for listener in getattr(server, "servers", ()):
            listener.close()
        await self._app.close(1.0)
        await self._owner.close(1.0)
        logging.getLogger("uvicorn.error").removeHandler(self._handler)
        self._server = None

    def _failed(self, name: str, error: BaseException) -> None:
        self._log.write("task_failed", task=name, error=f"{type(error).__name__}: {error}")


class _Unsignalled(uvicorn.Server):
    async def serve(self, sockets: list[socket.socket] | None = None) -> None:
        await self._serve(sockets)


class _ToLog(logging.Handler):
    """uvicorn's warnings as our log lines."""

    def __init__(self, log: Log) -> None:
        super().__init__(logging.WARNING)
        self._log = log

    def emit(self, record: logging.LogRecord) -> None:
        self._log.write("http_server", level=record.levelname.lower(), message=record.getMessage())


async def _bind(host: str, port: int) -> socket.socket:
    loop = asyncio.get_running_loop()
    try:
        found = await loop.getaddrinfo(host, port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE)
    except OSError as error:
        raise BindError(host, port, error) from error
    family, kind, protocol, _, address = found[0]
    sock = socket.socket(family, kind, protocol)
    try:
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        if family == socket.AF_INET6:
            sock.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, 1)
        sock.bind(address)
        sock.listen(_BACKLOG)
    except OSError as error:
        sock.close()
        raise BindError(host, port, error) from error
    sock.setblocking(False)
    return sock


_OVERLOADED = HoldfastError("overloaded", "the limit `connections` is reached", retry_after_s=1)


async def _overloaded(scope: Scope, receive: Receive, send: Send) -> None:
    await respond(_OVERLOADED, scope["path"], {"Connection": "close"})(scope, receive, send)


def _raw(response: Response) -> bytes:
    """A response for a connection on which no request of HTTP is served."""
    head = b"".join(b"%b: %b\r\n" % pair for pair in response.raw_headers)
    return b"HTTP/1.1 %d %b\r\n%b\r\n%b" % (
        response.status_code,
        HTTPStatus(response.status_code).phrase.encode(),
        head,
        bytes(response.body),
    )


class _Upgrading(HttpToolsProtocol):
    """Hands a connection over to WebSocket, unless there are too many; refuses what is no request."""

    _surplus = False

    def send_400_response(self, msg: str) -> None:
        """Say what was wrong, and close; `msg` is uvicorn's word, and of no use where the parser has a better one."""
        cycle: RequestResponseCycle | None = self.cycle  # None before the first request
        if cycle is not None and cycle.response_started and not cycle.response_complete:
            self.transport.close()  # its client would take the words for a part of what it reads
            return
        error = HoldfastError("malformed_request", _wrong(sys.exc_info()[1], msg))
        self.transport.write(_raw(respond(error, self._path(), {"Connection": "close"})))
        self.transport.close()

    def handle_websocket_upgrade(self) -> None:
        if self._surplus:
            self.transport.write(_raw(respond(_OVERLOADED, self._path(), {"Connection": "close"})))
            self.transport.close()
        else:
            super().handle_websocket_upgrade()

    def _path(self) -> str:
        return (self.url or b"").partition(b"?")[0].decode("ascii", "replace")


def _wrong(error: BaseException | None, otherwise: str) -> str:
    """What is no request, and why, as far as the parser says it."""
    if isinstance(error, httptools.HttpParserInvalidMethodError):
        return "the first word is no method of HTTP; is this a request, and not TLS or another protocol?"
    if isinstance(error, httptools.HttpParserInvalidURLError):
        return "the request's target is no URL"
    return f"this is no request of HTTP: {error}" if isinstance(error, httptools.HttpParserError) else otherwise


def _protocol(connections: int) -> type[asyncio.Protocol]:
    """Uvicorn's protocol with our bounds; a class for each limit, because uvicorn makes the instances."""

    class BoundedProtocol(_Upgrading):
        def __init__(self, *args: Any, **kwargs: Any) -> None:
            super().__init__(*args, **kwargs)
            self._served = self.app
            self._surplus = False
            self._in_head = True
            self._head_bytes = 0
            self._head_timer: asyncio.TimerHandle | None = None

        def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
            super().connection_made(transport)
            self._surplus = len(self.connections) > connections  # who came first is served
            if len(self.connections) > connections + PROBE_CONNECTIONS:
                transport.abort()
                return
            sock = transport.get_extra_info("socket")
            if sock is not None and hasattr(socket, "TCP_USER_TIMEOUT"):
                sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_USER_TIMEOUT, int(STUCK_S * 1000))
            self._await_head()

        def connection_lost(self, exc: Exception | None) -> None:
            self._head_ended()
            super().connection_lost(exc)

        def data_received(self, data: bytes) -> None:
            if self._in_head:
                self._head_bytes += len(data)
                if self._head_timer is None:
                    self._await_head()
            super().data_received(data)
            if self._in_head and self._head_bytes > HEAD_BYTES_MAX and not self.transport.is_closing():
                self.send_400_response(f"the request's head is over {HEAD_BYTES_MAX} bytes")

        def on_message_begin(self) -> None:
            super().on_message_begin()
            self.scope["extensions"] = {ABORT: {"abort": self.transport.abort}}

        def on_headers_complete(self) -> None:
            self._head_ended()
            app = _overloaded if self._surplus and self._path() not in _PROBES else self._served
            old = http_1_0.Unchunked(app) if self.parser.get_http_version() == http_1_0.VERSION else None
            self.app = old or app
            super().on_headers_complete()
            if old is not None:
                old.cycle = self.cycle

        def on_message_complete(self) -> None:
            super().on_message_complete()
            self._in_head = True
            self._head_bytes = 0

        def _await_head(self) -> None:
            self._head_timer = self.loop.call_later(HEAD_S, self._head_late)

        def _head_late(self) -> None:
            self._head_timer = None
            if self._in_head and not self.transport.is_closing():
                self.transport.abort()

        def _head_ended(self) -> None:
            self._in_head = False
            if self._head_timer is not None:
                self._head_timer.cancel()
                self._head_timer = None

    return BoundedProtocol

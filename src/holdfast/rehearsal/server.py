"""Serves the rehearsal model on a real socket: in the running loop, or alone until a signal.

uvicorn's protocol does the HTTP. Its server is left out: it owns the signals, which may belong to somebody else here,
and waits in fixed steps, which a test pays for each time. We bind the socket ourselves, so that a busy port is an
error with a remedy before anything runs, and port 0 is known at once.
"""

from __future__ import annotations

import asyncio
import contextlib
import errno
import logging
import signal
import socket
from collections.abc import Callable
from functools import partial

import uvicorn
import uvloop
from uvicorn.protocols.http.httptools_impl import HttpToolsProtocol
from uvicorn.server import ServerState

from holdfast.aio import settle
from holdfast.rehearsal.app import RehearsalApp

__all__ = ["CannotListen", "RehearsalServer", "run"]

GRACE_S = 1.0
CONNECTIONS_MAX = 4096
BACKLOG = 1024

_connection_log = logging.getLogger("holdfast.rehearsal.connection")


class CannotListen(RuntimeError):
    """The address cannot be listened on; the message says what to do."""

    def __init__(self, host: str, port: int, why: str) -> None:
        """Name the address and the remedy."""
        super().__init__(f"cannot listen on {host}:{port}: {why}")
        self.host = host
        self.port = port


class RehearsalServer:
    """A rehearsal model that listens while it is started.

    Example:
        async with RehearsalServer() as server:
            client = AsyncOpenAI(base_url=server.url, api_key="any")
    """

    def __init__(self, host: str = "127.0.0.1", port: int = 0) -> None:
        """Take the address to listen on; port 0 takes a free one."""
        self.app = RehearsalApp()
        self.host = host
        self._asked_port = port
        self._socket: socket.socket | None = None
        self._server: asyncio.Server | None = None
        self._state = ServerState()

    @property
    def port(self) -> int:
        """The port it listens on."""
        if self._server is None or self._socket is None:
            raise RuntimeError("the rehearsal model is not started; call start() first")
        return int(self._socket.getsockname()[1])

    @property
    def url(self) -> str:
        """The base URL to give to a client."""
        host = f"[{self.host}]" if ":" in self.host else self.host
        return f"http://{host}:{self.port}/v1"

    async def start(self) -> None:
        """Listen and serve until `stop`.

        Raises:
            CannotListen: The address is taken, forbidden or not ours.
        """
        if self._server is not None:
            raise RuntimeError("the rehearsal model is started already")
        loop = asyncio.get_running_loop()
        config = uvicorn.Config(
            self.app,
            http=_Connection,
            ws="none",
            lifespan="off",
            log_config=None,
            access_log=False,
            proxy_headers=False,
            limit_concurrency=CONNECTIONS_MAX,
        )
        config.load()
        self._state = ServerState()
        self._socket = _bind(self.host, self._asked_port)
        self._server = await loop.create_server(
            partial(_Connection, config, self._state, {}), sock=self._socket, backlog=BACKLOG
        )

    async def stop(self) -> None:
        """Cut every open answer, close the socket and leave nothing behind; safe to repeat."""
        if self._server is None:
            return
        server, self._server = self._server, None
        server.close()
        self.app.hang_up()
        handlers = await settle(set(self._state.tasks), GRACE_S)  # one is late if its client does not read
        for connection in list(self._state.connections):
            connection.transport.abort()
        for handler in handlers:
            handler.cancel()
        await settle(handlers, GRACE_S)
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(GRACE_S):
                await server.wait_closed()

    async def __aenter__(self) -> RehearsalServer:
        await self.start()
        return self

    async def __aexit__(self, *exc: object) -> None:
        await self.stop()


def run(
    host: str = "127.0.0.1",
    port: int = 8485,
    on_ready: Callable[[RehearsalServer], None] | None = None,
) -> None:
    """Serve until SIGTERM or SIGINT; `on_ready` is called once it listens.

    Raises:
        CannotListen: The address is taken, forbidden or not ours.
    """
    with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
        runner.run(_run(host, port, on_ready))


async def _run(host: str, port: int, on_ready: Callable[[RehearsalServer], None] | None) -> None:
    loop = asyncio.get_running_loop()
    told = asyncio.Event()
    for number in (signal.SIGTERM, signal.SIGINT):
        loop.add_signal_handler(number, told.set)
    async with RehearsalServer(host, port) as server:
        if on_ready is not None:
            on_ready(server)
        await told.wait()  # bounded: by the user, who started it and stops it by a signal


def _bind(host: str, port: int) -> socket.socket:
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    if not 0 <= port <= 65535:
        raise CannotListen(host, port, "a port is a number from 0 to 65535")
    try:
        bound = socket.create_server((host, port), family=family, backlog=BACKLOG)
    except OSError as error:
        raise CannotListen(host, port, _why(error)) from error
    bound.setblocking(False)
    return bound


def _why(error: OSError) -> str:
    match error.errno:
        case errno.EADDRINUSE:
            return "the port is taken; stop what listens there, or choose another with --port (0 takes a free one)"
        case errno.EACCES:
            return "not allowed; choose a port of 1024 or more with --port"
        case errno.EADDRNOTAVAIL:
            return "no interface has this address; choose another with --host, such as 127.0.0.1"
        case _:
            return f"{error.strerror or error}; check --host and --port"


class _Connection(HttpToolsProtocol):
    """uvicorn's HTTP, quiet about answers that are cut on purpose."""

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]  # as uvicorn has it
        self.logger = _connection_log
        super().connection_made(transport)


def _wanted(record: logging.LogRecord) -> bool:
    """Not what `!close` and `stop` do: a response left incomplete, a handler cancelled."""
    cancelled = record.exc_info and isinstance(record.exc_info[1], asyncio.CancelledError)
    return not cancelled and "without completing response" not in record.getMessage()


_connection_log.addFilter(_wanted)

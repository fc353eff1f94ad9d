"""Serves the rehearsal model on a real socket: in the running loop, or alone until a signal.

uvicorn does the HTTP. We bind the socket ourselves, so that a busy port is an error with a remedy before anything
runs, and port 0 is known at once. uvicorn's own signal handling stays off: the loop may belong to somebody else.
"""

from __future__ import annotations

import asyncio
import contextlib
import errno
import logging
import signal
import socket
from collections.abc import Callable, Iterator
from typing import Any

import uvicorn
import uvloop
from uvicorn.protocols.http.httptools_impl import HttpToolsProtocol

from holdfast.aio import Owner, settle, wait_event
from holdfast.rehearsal.app import RehearsalApp

__all__ = ["CannotListen", "RehearsalServer", "run"]

START_S_MAX = 10.0
GRACE_S = 2
STOP_S_MAX = GRACE_S + 3.0
CONNECTIONS_MAX = 4096
BACKLOG = 1024

_log = logging.getLogger("holdfast.rehearsal")
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
        self._server: _Server | None = None
        self._task: asyncio.Task[None] | None = None
        self._owner = Owner(_report)

    @property
    def port(self) -> int:
        """The port it listens on."""
        if self._socket is None:
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
        if self._task is not None:
            raise RuntimeError("the rehearsal model is started already")
        self._socket = _bind(self.host, self._asked_port)
        self._server = _Server(
            uvicorn.Config(
                self.app,
                http=_Connection,
                ws="none",
                lifespan="off",
                log_config=None,
                access_log=False,
                server_header=False,
                proxy_headers=False,
                limit_concurrency=CONNECTIONS_MAX,
                backlog=BACKLOG,
                timeout_graceful_shutdown=GRACE_S,
            )
        )
        self._task = self._owner.spawn(self._server.serve([self._socket]), "rehearsal server")
        if not await wait_event(self._server.serving, START_S_MAX):
            await self.stop()
            raise CannotListen(self.host, self._asked_port, f"not serving after {START_S_MAX:g} s")

    async def stop(self) -> None:
        """Cut every open answer, close the socket and leave nothing behind; safe to repeat."""
        if self._server is None or self._task is None:
            return
        self._server.should_exit = True
        self.app.hang_up()
        if await settle({self._task}, STOP_S_MAX):
            await self._owner.close(1.0)
        for connection in list(self._server.server_state.connections):
            connection.transport.abort()
        if self._socket is not None:
            self._socket.close()
        self._server = self._task = self._socket = None

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
        await told.wait()  # for as long as the user wants it


def _bind(host: str, port: int) -> socket.socket:
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    try:
        bound = socket.create_server((host, port), family=family, backlog=BACKLOG)
    except OverflowError:
        raise CannotListen(host, port, "a port is a number from 0 to 65535") from None
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


class _Server(uvicorn.Server):
    """uvicorn without its signal handlers, and with an event for having started."""

    def __init__(self, config: uvicorn.Config) -> None:
        super().__init__(config)
        self.serving = asyncio.Event()

    @contextlib.contextmanager
    def capture_signals(self) -> Iterator[None]:
        yield

    async def startup(self, sockets: list[socket.socket] | None = None) -> None:
        await super().startup(sockets)
        self.serving.set()


class _Connection(HttpToolsProtocol):
    """uvicorn's HTTP, quiet about answers that are cut on purpose."""

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self.logger = _connection_log


def _wanted(record: logging.LogRecord) -> bool:
    """Not what `!close` and `stop` do: a response left incomplete, a handler cancelled."""
    cancelled = record.exc_info and isinstance(record.exc_info[1], asyncio.CancelledError)
    return not cancelled and "without completing response" not in record.getMessage()


_connection_log.addFilter(_wanted)


def _report(name: str, error: BaseException) -> None:
    _log.error("rehearsal_task_failed task=%s error=%r", name, error)

"""Talks HTTP to the server under test, and never waits without a limit.

What a library would do for its user is left out on purpose: no retry, no redirect, no connection that is used twice.
Each request is what the server gets, and each failure is what the server did.

    Unreachable     nobody listens there, or the name is unknown
    Silent          the limit passed and nothing came
    Broke           the connection was cut, or what came is no HTTP
"""

from __future__ import annotations

import asyncio
import json
import socket
import time
from collections.abc import Callable, Mapping
from typing import Any, Final, NamedTuple
from urllib.parse import urlsplit

import httpx2

from holdfast.aio import Owner
from holdfast.probe.chats import Frame

LOOPBACK: Final = frozenset({"127.0.0.1", "::1", "localhost"})
STREAM_BYTES_MAX: Final = 16 * 1024 * 1024
BODY_BYTES_MAX: Final = 4 * 1024 * 1024
SSE: Final = "text/event-stream"
_CONNECT_S: Final = 10.0
_SMALL_BUFFER: Final = 16_384
_LINE_MAX: Final = 512


class Unreachable(Exception):
    """Nobody answers at this address."""


class Silent(Exception):
    """A limit passed, and what should have come did not."""


class Broke(Exception):
    """The connection ended in the middle, or what came is no HTTP."""


class Answer(NamedTuple):
    """A whole answer."""

    status: int
    headers: Mapping[str, str]
    body: bytes
    took_ms: float

    @property
    def json(self) -> Any:
        """The body as JSON, or None where it is none."""
        try:
            return json.loads(self.body)
        except ValueError:
            return None

    def words(self) -> str:
        """The status and the beginning of the body."""
        text = " ".join(self.body[:_LINE_MAX].decode(errors="replace").split())
        return f"{self.status} {text[:160]}".strip()


class Wire:
    """One server, a connection for each request."""

    def __init__(self, url: str, api_key: str | None, timeout_s: float) -> None:
        """Prepare; nothing is sent.

        Raises:
            ValueError: `url` is no http address.
        """
        parts = urlsplit(url)
        if parts.scheme not in {"http", "https"} or not parts.hostname:
            raise ValueError(f"{url!r} is no address such as http://127.0.0.1:8484")
        self.url = url.rstrip("/").removesuffix("/v1")
        self.timeout_s = timeout_s
        self._headers: dict[str, str] = {}
        self._trust_env = parts.hostname not in LOOPBACK  # a proxy cannot reach our loopback
        self._owner = Owner(lambda name, error: None)  # a stream tells its failure itself
        self._http = self._client([])
        self._small: httpx2.AsyncClient | None = None
        if api_key:
            self.carry(api_key)

    def _client(self, options: list[tuple[int, int, int]]) -> httpx2.AsyncClient:
        limits = httpx2.Limits(max_connections=100, max_keepalive_connections=0)
        proxied = self._trust_env
        transport = None if proxied else httpx2.AsyncHTTPTransport(limits=limits, socket_options=options)
        # No limit for reading: a silent stream is what the server does, and whoever waits for it has a limit.
        timeout = httpx2.Timeout(self.timeout_s, read=None, connect=min(_CONNECT_S, self.timeout_s))
        return httpx2.AsyncClient(
            base_url=self.url,
            headers=self._headers,
            limits=limits,
            transport=transport,
            trust_env=proxied,
            timeout=timeout,
        )

    def carry(self, api_key: str) -> None:
        """Send this key from now on."""
        self._headers = {"Authorization": f"Bearer {api_key}"}
        self._http.headers.update(self._headers)

    async def aclose(self) -> None:
        """Leave every stream, close every connection."""
        await self._owner.close(1.0)
        await self._http.aclose()
        if self._small is not None:
            await self._small.aclose()

    async def ask(
        self,
        method: str,
        path: str,
        body: Any = None,
        *,
        headers: Mapping[str, str] | None = None,
        limit_s: float | None = None,
    ) -> Answer:
        """One request and its whole answer; `body` is sent as JSON, bytes as they are.

        Raises:
            Unreachable: Nobody listens.
            Silent: Not within `limit_s` (timeout_s by default).
            Broke: The connection was cut.
        """
        limit_s = self.timeout_s if limit_s is None else limit_s
        began = time.monotonic()
        what = f"{method} {path}"
        request = self._http.build_request(
            method, path, content=_encoded(body), headers={"Accept": "application/json", **_typed(body, headers)}
        )
        try:
            async with asyncio.timeout(limit_s):
                response = await self._http.send(request, stream=True)
                try:
                    content = await _body(response)
                finally:
                    await response.aclose()
        except (TimeoutError, httpx2.RequestError) as error:
            raise _translated(error, what, limit_s) from error
        return Answer(response.status_code, response.headers, content, (time.monotonic() - began) * 1000)

    def stream(
        self,
        method: str,
        path: str,
        body: Any = None,
        *,
        headers: Mapping[str, str] | None = None,
        held: bool = False,
    ) -> Stream:
        """Begin a request whose answer is read as it comes; `held` reads nothing of it until `release`."""
        request = self._http.build_request(
            method, path, content=_encoded(body), headers={"Accept": SSE, **_typed(body, headers)}
        )
        if held and self._small is None:
            self._small = self._client([(socket.SOL_SOCKET, socket.SO_RCVBUF, _SMALL_BUFFER)])
        http = self._small if held and self._small is not None else self._http
        stream = Stream(http, request, self.timeout_s, held=held)
        stream.begin(self._owner)
        return stream


class Stream:
    """An answer on its way: what has come so far, and when.

    Attributes:
        began: When the request was sent (monotonic seconds).
        opened_at: When the headers came.
        status: Of the answer; 0 before.
        headers: Of the answer.
        frames: The events so far; of an answer that is no stream of events, its lines.
        ended_at: When the server closed it.
        cut: How it ended, if not by a clean close of the server.
    """

    def __init__(self, http: httpx2.AsyncClient, request: httpx2.Request, timeout_s: float, *, held: bool) -> None:
        self.what = f"{request.method} {request.url.raw_path.decode()}"
        self.began = time.monotonic()
        self.opened_at = 0.0
        self.status = 0
        self.headers: Mapping[str, str] = {}
        self.frames: list[Frame] = []
        self.ended_at = 0.0
        self.cut = ""
        self._http = http
        self._request = request
        self._timeout_s = timeout_s
        self._bytes = 0
        self._changed = asyncio.Event()
        self._released = asyncio.Event()
        if not held:
            self._released.set()
        self._task: asyncio.Task[None] | None = None

    def begin(self, owner: Owner) -> None:
        """Start reading."""
        self._task = owner.spawn(self._read(), self.what)

    @property
    def over(self) -> bool:
        """Whether nothing more will come."""
        return bool(self.ended_at)

    def release(self) -> None:
        """Read from now on."""
        self._released.set()

    def leave(self) -> None:
        """Go away: the connection is closed without a word."""
        if self._task is not None:
            self._task.cancel()

    async def until(
        self, holds: Callable[[], object], what: str, limit_s: float | None = None, *, restart: bool = False
    ) -> bool:
        """Wait until something holds; False where the stream ended and it still does not.

        Args:
            holds: What is asked after each frame.
            what: The same in words.
            limit_s: How long to wait; timeout_s by default.
            restart: Each frame starts the limit anew: for answers of unknown length.

        Raises:
            Silent: Not in time.
        """
        limit_s = self._timeout_s if limit_s is None else limit_s
        end = time.monotonic() + limit_s
        while not holds():
            if self.over:
                return False
            self._changed.clear()
            seen = len(self.frames)
            try:
                async with asyncio.timeout(end - time.monotonic()):
                    await self._changed.wait()
            except TimeoutError:
                if not holds():
                    raise Silent(f"{what}: not within {limit_s:.1f} s ({self.state()})") from None
            if restart and len(self.frames) > seen:
                end = time.monotonic() + limit_s
        return True

    async def opened(self, limit_s: float | None = None) -> Stream:
        """Itself, once the headers are there.

        Raises:
            Silent: They are not.
            Broke: The connection was cut before them.
        """
        if not await self.until(lambda: self.status, f"{self.what}: the headers of the answer", limit_s):
            raise Broke(f"{self.what}: {self.cut or 'the connection closed without an answer'}")
        return self

    async def ended(self, what: str = "", limit_s: float | None = None) -> Stream:
        """Itself, once the server has closed it; raises as `opened` does."""
        await self.until(lambda: self.over, what or f"{self.what}: the end of the stream", limit_s)
        if not self.status:
            raise Broke(f"{self.what}: {self.cut or 'the connection closed without an answer'}")
        return self

    def state(self) -> str:
        """How it stands, in words."""
        if not self.status:
            return self.cut or "no headers yet"
        last = self.frames[-1].data[:60] if self.frames else ""
        shown = f"{len(self.frames)} frames so far, the last {last!r}" if last else "headers, and no event so far"
        return f"{shown}; {self.cut or 'closed'}" if self.over else shown

    def body(self) -> str:
        """What came as an answer that is no stream of events."""
        return " ".join(frame.data for frame in self.frames)[:_LINE_MAX]

    async def _read(self) -> None:
        try:
            response = await self._http.send(self._request, stream=True)
            try:
                self.headers, self.status, self.opened_at = response.headers, response.status_code, time.monotonic()
                self._changed.set()
                # bounded: whoever holds it releases or leaves it, and the whole probe has a limit
                await self._released.wait()
                await self._take(response)
            finally:
                await response.aclose()
        except Exception as error:  # noqa: BLE001 - whatever a server sends is a finding, and must not end the probe
            self.cut = _cause(error)
        finally:
            self.ended_at = time.monotonic()
            self._changed.set()

    async def _take(self, response: httpx2.Response) -> None:
        media_type = response.headers.get("content-type", "").partition(";")[0].strip().lower()
        if media_type != SSE:
            async for line in response.aiter_lines():
                self._add("", line, "")
            return
        try:
            async for frame in httpx2.EventSource(response, max_event_size=BODY_BYTES_MAX):
                if frame.data:
                    self._add(frame.event, frame.data, frame.id)
        except httpx2.SSEError as error:
            self.cut = f"it is no stream of events: {error}"

    def _add(self, event: str, data: str, id_: str) -> None:
        self._bytes += len(data)
        if self._bytes > STREAM_BYTES_MAX:
            raise httpx2.ReadError(f"more than {STREAM_BYTES_MAX} bytes", request=self._request)
        self.frames.append(Frame(time.monotonic(), event, data, id_))
        self._changed.set()


def _encoded(body: Any) -> bytes | None:
    if body is None or isinstance(body, bytes):
        return body
    return json.dumps(body).encode()


def _typed(body: Any, headers: Mapping[str, str] | None) -> dict[str, str]:
    return {**({} if body is None else {"Content-Type": "application/json"}), **(headers or {})}


async def _body(response: httpx2.Response) -> bytes:
    body = bytearray()
    async for piece in response.aiter_bytes():
        body += piece
        if len(body) > BODY_BYTES_MAX:
            break
    return bytes(body)


def _translated(error: Exception, what: str, limit_s: float) -> Exception:
    if isinstance(error, httpx2.ConnectError | httpx2.ConnectTimeout):
        return Unreachable(_cause(error))
    if isinstance(error, TimeoutError | httpx2.TimeoutException):
        return Silent(f"{what}: no whole answer within {limit_s:.1f} s")
    return Broke(f"{what}: {_cause(error)}")


def _cause(error: Exception) -> str:
    return f"{type(error).__name__}: {error}" if str(error) else type(error).__name__

"""HTTP on raw sockets, as far as a broken server needs it: it decides itself when to answer, and when to close."""

from __future__ import annotations

import asyncio
import json
from contextlib import suppress
from typing import Any, NamedTuple, Self


class Request(NamedTuple):
    method: str
    path: str
    query: dict[str, str]
    headers: dict[str, str]
    body: bytes
    gone: asyncio.Event  # set once the client has gone away

    @property
    def json(self) -> Any:
        with suppress(ValueError):
            return json.loads(self.body)
        return None


class Response:
    """An answer in chunks, so that one that is cut looks different from one that ends."""

    def __init__(self, writer: asyncio.StreamWriter) -> None:
        self._writer = writer

    async def begin(self, media_type: str = "text/event-stream", status: int = 200) -> None:
        lines = [
            f"HTTP/1.1 {status} x",
            f"content-type: {media_type}",
            "transfer-encoding: chunked",
            "connection: close",
        ]
        await self._write("\r\n".join([*lines, "", ""]).encode())

    async def send(self, text: str) -> None:
        data = text.encode()
        await self._write(f"{len(data):x}\r\n".encode() + data + b"\r\n")

    async def event(self, data: str, event: str = "", event_id: str = "") -> None:
        head = (f"id: {event_id}\n" if event_id else "") + (f"event: {event}\n" if event else "")
        await self.send(f"{head}data: {data}\n\n")

    async def end(self) -> None:
        await self._write(b"0\r\n\r\n")

    async def whole(self, body: Any, status: int = 200) -> None:
        await self.begin("application/json", status)
        await self.send(json.dumps(body))
        await self.end()

    async def _write(self, data: bytes) -> None:
        if not self._writer.is_closing():
            with suppress(ConnectionError):
                self._writer.write(data)
                await self._writer.drain()


class Server:
    """Listens on a free port of loopback; a subclass answers."""

    def __init__(self) -> None:
        self._tasks: set[asyncio.Task[None]] = set()

    async def answer(self, request: Request, response: Response) -> None:
        raise NotImplementedError

    async def __aenter__(self) -> Self:
        self._server = await asyncio.start_server(self._connected, "127.0.0.1", 0)
        self.url = f"http://127.0.0.1:{self._server.sockets[0].getsockname()[1]}"
        return self

    async def __aexit__(self, *exc: object) -> None:
        # A connection that is accepted just now is lost by asyncio's close(): let it arrive first.
        await asyncio.sleep(0.05)
        self._server.close()
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)

    def _connected(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        task = asyncio.create_task(self._serve(reader, writer))
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)
        task.add_done_callback(lambda _: writer.close())  # also of one that was cancelled before it began

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        watcher = None
        try:
            request = await _read(reader)
            watcher = asyncio.create_task(_watch(reader, request.gone))
            await self.answer(request, Response(writer))
        except (asyncio.IncompleteReadError, ConnectionError):
            pass
        finally:
            writer.close()  # before anything that can be cancelled
            if watcher is not None:
                watcher.cancel()
            with suppress(ConnectionError):
                await writer.wait_closed()


async def _watch(reader: asyncio.StreamReader, gone: asyncio.Event) -> None:
    with suppress(ConnectionError):
        await reader.read()
    gone.set()


async def _read(reader: asyncio.StreamReader) -> Request:
    head = (await reader.readuntil(b"\r\n\r\n")).decode()
    first, *lines = head.strip().split("\r\n")
    method, target, _ = first.split(" ")
    headers = {name.lower(): value for name, value in (line.split(": ", 1) for line in lines)}
    path, _, query = target.partition("?")
    body = await reader.readexactly(int(headers.get("content-length", 0)))
    asked = dict(pair.split("=", 1) for pair in query.split("&") if "=" in pair)
    return Request(method, path, asked, headers, body, asyncio.Event())

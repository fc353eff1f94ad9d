"""Answers to HTTP/1.0: what has no length ends with its connection, because that version knows no chunks.

uvicorn cuts every such answer into chunks, whoever asked; a client of HTTP/1.0 takes the sizes for events. Proxies that
speak 1.0 to their upstream are among them.
"""

from __future__ import annotations

import sys

from starlette.types import ASGIApp, Message, Receive, Scope, Send
from uvicorn.protocols.http.httptools_impl import RequestResponseCycle

VERSION = "1.0"


class Unchunked:
    """One request of HTTP/1.0 for an app.

    Attributes:
        cycle: uvicorn's state of this request, which it makes after it was given the app.
    """

    def __init__(self, app: ASGIApp) -> None:
        """Take what serves the request."""
        self._app = app
        self.cycle: RequestResponseCycle | None = None

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Serve it; uvicorn closes the connection after the last piece."""
        cycle, without_length = self.cycle, False

        async def sending(message: Message) -> None:
            nonlocal without_length
            if cycle is not None and message["type"] == "http.response.start":
                names = {name.lower() for name, _ in message.get("headers", ())}
                without_length = b"content-length" not in names and message["status"] not in (204, 304)
                if without_length:
                    cycle.chunked_encoding, cycle.expected_content_length = False, sys.maxsize
            elif cycle is not None and without_length and not message.get("more_body", False):
                cycle.expected_content_length = len(message.get("body", b""))
            await send(message)

        await self._app(scope, receive, sending)

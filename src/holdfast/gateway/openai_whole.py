"""What OpenAI's protocols answer when they do not stream: wait for the end of the log, then say all of it at once."""

from __future__ import annotations

from contextlib import aclosing, nullcontext
from typing import Any, Protocol

from starlette.responses import Response
from starlette.types import Receive, Scope, Send

from holdfast.domain.errors import HoldfastError
from holdfast.domain.events import decode_event
from holdfast.gateway.events import STREAM_HEADERS, Opening, complete
from holdfast.gateway.gate import Gate
from holdfast.gateway.problems import openai_document
from holdfast.gateway.readers import Reader, pages
from holdfast.gateway.routes import answer
from holdfast.ports.store import RunRecord


class Fold(Protocol):
    """Makes one answer of a whole log."""

    def feed(self, event: dict[str, Any]) -> object:
        """Take the next event."""

    def answer(self) -> Response:
        """What the log comes to."""


def named(record: RunRecord) -> dict[str, str]:
    """The headers that say which run and which session answered."""
    return {"X-Run-Id": record.key.run, "X-Session-Id": record.session}


class WholeAnswer(Response):
    """An answer that is not streamed: waits for the end, and sends nothing to a client that has left."""

    def __init__(self, gate: Gate, record: RunRecord, opening: Opening, fold: Fold, *, listens: bool) -> None:
        """Take the run, what is made of its log, and whether it is stopped if the client leaves."""
        self._gate = gate
        self._record = record
        self._opening = opening
        self._fold = fold
        self._listens = listens

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Wait, then answer."""
        key = self._record.key

        def on_gone() -> None:
            if self._listens:
                self._gate.client_gone(key)

        response: Response | None = None
        with self._gate.listening(key) if self._listens else nullcontext():
            async with Reader(self._gate, scope, receive, on_gone, resumes=False) as reader:
                response = await self._answer()
        if response is None and not reader.gone:
            closing = HoldfastError("not_ready", "the server is closing; the run goes on", run=key.run)
            response = answer(openai_document(closing), 503, {"Retry-After": "1"})
        if response is not None:
            response.headers.update({**STREAM_HEADERS, **named(self._record)})
            await response(scope, receive, send)

    async def _answer(self) -> Response:
        page = self._opening.page
        for event in map(decode_event, page.events):
            self._fold.feed(event)
        if not complete(page):
            async with aclosing(pages(self._gate, self._record.key, page.first + len(page.events) - 1)) as tail:
                async for found in tail:
                    if isinstance(found, HoldfastError):
                        return answer(openai_document(found), found.status)
                    for event in map(decode_event, found.events):
                        self._fold.feed(event)
        return self._fold.answer()

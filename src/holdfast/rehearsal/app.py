"""The rehearsal model as an ASGI application: one model endpoint, and the counters that say what it saw.

    POST /v1/chat/completions    streamed and not
    GET /v1/models               not counted
    GET, DELETE /_stats          the counters, and a reset; ?requests=1 adds the last requests themselves,
                                 ?open=1 the prompts of those that are open

Plain ASGI and no framework: a rehearsal has to hold headers back, to stop in the middle of a body and to see the
client leave before its first byte, and each of these is one ASGI message here.
"""

from __future__ import annotations

import logging
from typing import Any, assert_never

from holdfast.aio import Owner
from holdfast.rehearsal.answer import Answer
from holdfast.rehearsal.exchange import (
    BODY_BYTES_MAX,
    BodyTooLarge,
    BodyTooSlow,
    Exchange,
    Gone,
    Receive,
    Send,
    Who,
)
from holdfast.rehearsal.plan import next_segment
from holdfast.rehearsal.play import play_body, play_stream, reply
from holdfast.rehearsal.script import RATE, TOKENS_ALONE, ScriptError, says_nothing
from holdfast.rehearsal.stats import Stats
from holdfast.rehearsal.steps import Fault, Segment, SlowHeaders, Status, Step, Tokens
from holdfast.rehearsal.wire import (
    MODEL,
    BadRequest,
    Body,
    Chunks,
    Request,
    encode,
    error_body,
    read_request,
)

__all__ = ["RehearsalApp", "create_app"]

OPEN_MAX = 2000
PROMPT_CHARS_MAX = 1000
COMPLETIONS = "/v1/chat/completions"
PATHS = {COMPLETIONS: ("POST",), "/v1/models": ("GET",), "/_stats": ("GET", "DELETE")}
CLOSE = (b"connection", b"close")
MODELS = {
    "object": "list",
    "data": [{"id": MODEL, "object": "model", "created": 0, "owned_by": "holdfast"}],
}

_log = logging.getLogger("holdfast.rehearsal")


def create_app() -> RehearsalApp:
    """A rehearsal model for any ASGI server."""
    return RehearsalApp()


class RehearsalApp:
    """Answers requests from the scripts in them; holds the counters and the open exchanges."""

    def __init__(self) -> None:
        """Start with nothing counted."""
        self.stats = Stats()
        self._open: set[Exchange] = set()
        self._owner = Owner(_report)

    async def __call__(self, scope: dict[str, Any], receive: Receive, send: Send) -> None:
        """Serve one ASGI connection."""
        match scope["type"]:
            case "http":
                await self._serve(scope, receive, send)
            case "lifespan":
                await _lifespan(receive, send)
            case other:
                raise ValueError(f"the rehearsal model speaks http only, not {other}")

    def hang_up(self) -> None:
        """End every open exchange at once, as a model server that goes down does."""
        for exchange in list(self._open):
            exchange.end(Who.SERVER)

    async def _serve(self, scope: dict[str, Any], receive: Receive, send: Send) -> None:
        method, path = scope["method"], scope["path"]
        counted = path == COMPLETIONS and method == "POST"
        exchange = Exchange(receive, send, self._owner)
        if counted:
            self.stats.opened()
        self._open.add(exchange)
        gone: Who | None = None
        try:
            if counted:
                await self._complete(exchange)
            else:
                await self._inform(exchange, method, path, scope["query_string"])
        except Gone:
            gone = exchange.gone
        finally:
            self._open.discard(exchange)
            if counted and gone is Who.CLIENT:
                self.stats.disconnected(exchange.silence_s)
            elif counted:
                self.stats.ended()
            await exchange.close()

    async def _inform(self, exchange: Exchange, method: str, path: str, query: bytes) -> None:
        """Answer what is not a completion."""
        match method, path:
            case "GET", "/_stats":
                asked = query.split(b"&")
                shown = self.stats.snapshot(requests=b"requests=1" in asked)
                if b"open=1" in asked:
                    shown["open_prompts"] = [other.prompt for other in self._open if other.prompt is not None]
                await reply(exchange, 200, encode(shown))
            case "DELETE", "/_stats":
                self.stats.reset()
                await reply(exchange, 200, encode(self.stats.snapshot(requests=False)))
            case "GET", "/v1/models":
                await reply(exchange, 200, encode(MODELS))
            case _, path if path in PATHS:
                allowed = ", ".join(PATHS[path])
                error = error_body(f"{path} takes {allowed}", "invalid_request_error", None)
                await reply(exchange, 405, encode(error), (b"allow", allowed.encode()), CLOSE)
            case _:
                message = f"no such path: {path[:200]}; there are " + ", ".join(PATHS)
                error = error_body(message, "invalid_request_error", "not_found")
                await reply(exchange, 404, encode(error), CLOSE)

    async def _complete(self, exchange: Exchange) -> None:
        """Answer one request for a completion, whatever is in it."""
        if len(self._open) > OPEN_MAX:
            message = f"more than {OPEN_MAX} answers are open; wait for some to end"
            await _refuse(exchange, 503, message, "overloaded", (b"retry-after", b"1"), CLOSE)
            return
        try:
            body = await exchange.read_body()
            request = read_request(body)
            segment = next_segment(request.messages)
        except BodyTooLarge:
            message = f"the body has more than {BODY_BYTES_MAX} bytes; send less"
            await _refuse(exchange, 413, message, "body_too_large", CLOSE)
        except BodyTooSlow:
            await _refuse(exchange, 408, "the body did not arrive in time", "body_too_slow", CLOSE)
        except BadRequest as error:
            await _refuse(exchange, 400, str(error), "invalid_request")
        except ScriptError as error:
            await _refuse(exchange, 400, f"rehearsal script: {error}", "invalid_script")
        else:
            self.stats.keep(body)
            exchange.prompt = request.prompt[:PROMPT_CHARS_MAX]
            await self._perform(exchange, request, segment)

    async def _perform(self, exchange: Exchange, request: Request, segment: Segment) -> None:
        answer_id = f"chatcmpl-{request.digest}-{self.stats.served}"
        for step in segment.opening:
            match step:
                case SlowHeaders(seconds=seconds):
                    await exchange.pause(seconds)
                case Status() if step.above is not None and request.prompt_tokens <= step.above:
                    pass
                case Status():
                    seen = self.stats.repeat(request.digest, step.line)
                    if step.times is None or seen < step.times:
                        await _fail(exchange, step, seen + 1)
                        return
                case _:
                    assert_never(step)
        answer = Answer(self._body(request, segment), request.prompt_tokens, f"call_{request.digest}")
        if request.stream:
            chunks = Chunks(answer_id, request.model)
            await play_stream(exchange, answer, chunks, include_usage=request.include_usage)
        else:
            await play_body(exchange, answer, Body(answer_id, request.model))

    def _body(self, request: Request, segment: Segment) -> tuple[Step, ...]:
        """What is performed now: without the faults that have passed."""
        body = tuple(step for step in segment.body if self._lasts(request, step))
        return body if body == segment.body or not says_nothing(body) else (*body, Tokens(TOKENS_ALONE, RATE))

    def _lasts(self, request: Request, step: Step) -> bool:
        if not isinstance(step, Fault) or step.times is None:
            return True
        return self.stats.repeat(request.digest, step.line) < step.times


async def _refuse(exchange: Exchange, status: int, message: str, code: str, *headers: tuple[bytes, bytes]) -> None:
    kind = "invalid_request_error" if status < 500 else "server_error"
    await reply(exchange, status, encode(error_body(message, kind, code)), *headers)


async def _fail(exchange: Exchange, step: Status, nth: int) -> None:
    """Answer with the status that the script asks for."""
    kinds = {401: "authentication_error", 403: "permission_error", 429: "rate_limit_error"}
    default = "server_error" if step.code >= 500 else "invalid_request_error"
    limit = "" if step.times is None else f" of {step.times}"
    message = f"rehearsal: !status code={step.code} (answer {nth}{limit} to these messages)"
    headers = []
    if step.retry_after is not None:
        headers.append((b"retry-after", f"{step.retry_after:.7g}".encode()))
    error = error_body(message, kinds.get(step.code, default), step.error)
    await reply(exchange, step.code, encode(error), *headers)


async def _lifespan(receive: Receive, send: Send) -> None:
    while (await receive())["type"] == "lifespan.startup":
        await send({"type": "lifespan.startup.complete"})
    await send({"type": "lifespan.shutdown.complete"})


def _report(name: str, error: BaseException) -> None:
    _log.error("rehearsal_task_failed task=%s error=%r", name, error)

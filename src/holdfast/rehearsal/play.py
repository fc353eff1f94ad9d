"""Plays an answer to a client in time: streamed piece by piece, or as one body at the end.

Pieces that are due go out together, each its own event: at high rates a sleep per token would cost more than the
token. A client that falls away between two of them is seen at the next wait or write.
"""

from __future__ import annotations

import asyncio
import time

from holdfast.rehearsal.answer import Answer, Ending
from holdfast.rehearsal.exchange import Exchange
from holdfast.rehearsal.wire import DONE, STREAM_ERROR, Body, Chunks, Usage, encode, error_body

__all__ = ["play_body", "play_stream", "reply"]

SLACK_S = 0.001  # closer than this is now
WRITE_BYTES = 32 * 1024

JSON = (b"content-type", b"application/json")
EVENTS = (
    (b"content-type", b"text/event-stream; charset=utf-8"),
    (b"cache-control", b"no-store, no-transform"),
    (b"x-accel-buffering", b"no"),
)


async def play_stream(exchange: Exchange, answer: Answer, chunks: Chunks, *, include_usage: bool) -> None:
    """Stream the answer as server-sent events."""
    await exchange.start(200, EVENTS)
    started = time.monotonic()
    ready = bytearray()
    done = DONE
    for due, piece in answer.pieces():
        if started + due - time.monotonic() > SLACK_S:
            await _flush(exchange, ready)
            await exchange.wait_until(started + due)
        elif len(ready) > WRITE_BYTES:
            await _flush(exchange, ready)
        if isinstance(piece, Ending):
            if piece.kind == "close":
                await _flush(exchange, ready)
                return
            include_usage = False
            if piece.kind == "truncate":
                done = b""
        ready += chunks.piece(piece)
    if include_usage:
        ready += chunks.usage(Usage(*answer.usage))
    await exchange.write(bytes(ready) + done, more=False)


async def play_body(exchange: Exchange, answer: Answer, body: Body) -> None:
    """Send the answer at once, when its last piece is due; a fault of the stream becomes the same fault of the body."""
    started = time.monotonic()
    ending: Ending | None = None
    for due, piece in answer.pieces():
        if started + due - time.monotonic() > SLACK_S:
            await exchange.wait_until(started + due)
        body.take(piece)
        if isinstance(piece, Ending):
            ending = piece
    whole = body.encode(Usage(*answer.usage))
    match ending.kind if ending else None:
        case None:
            await reply(exchange, 200, whole)
        case "truncate":
            await reply(exchange, 200, whole[: len(whole) // 2])
        case "close":
            await exchange.start(200, [JSON, _length(whole)])
            await exchange.write(whole[: len(whole) // 2])
        case "error":
            error = error_body(STREAM_ERROR, "server_error", ending.error if ending else None)
            await reply(exchange, 500, encode(error))


async def reply(exchange: Exchange, status: int, body: bytes, *headers: tuple[bytes, bytes]) -> None:
    """Send a whole JSON response."""
    await exchange.start(status, [JSON, _length(body), *headers])
    await exchange.write(body, more=False)


def _length(body: bytes) -> tuple[bytes, bytes]:
    return b"content-length", str(len(body)).encode()


async def _flush(exchange: Exchange, ready: bytearray) -> None:
    """Send what is ready, and let the loop look at the connection."""
    if ready:
        await exchange.write(bytes(ready))
        ready.clear()
        await asyncio.sleep(0)

"""Upstreams that compress what nobody asked them to: read where it is honest, bounded where it is a bomb."""

from __future__ import annotations

import asyncio
import gzip
import json
import zlib
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager, suppress

import httpx2
import pytest
from pydantic_ai.exceptions import ModelAPIError, ModelHTTPError

from holdfast.app.upstream import probe_model
from holdfast.models import ModelBadResponse, ModelClient
from holdfast.models.bounds import DECODED_BYTES, ERROR_BYTES_MAX, AnswerTooLarge, AnswerUnreadable, BoundedStream
from holdfast.models.transport import PIECE_BYTES_MAX, ProbedTransport
from tests.models.test_guard import PATIENT, Asked

MIB = 1_048_576
EVENT_STREAM = b"text/event-stream"


def raw_deflate(data: bytes) -> bytes:
    """Deflate without zlib's header, as some servers send it."""
    squeeze = zlib.compressobj(9, zlib.DEFLATED, -zlib.MAX_WBITS)
    return squeeze.compress(data) + squeeze.flush()


def answer(text: str) -> bytes:
    """A streamed chat completion of one piece."""
    chunk = {"id": "c", "object": "chat.completion.chunk", "created": 1, "model": "m"}
    said = chunk | {"choices": [{"index": 0, "delta": {"role": "assistant", "content": text}}]}
    ended = chunk | {"choices": [{"index": 0, "delta": {}, "finish_reason": "stop"}]}
    return b"".join(b"data: %b\n\n" % json.dumps(each).encode() for each in (said, ended)) + b"data: [DONE]\n\n"


@asynccontextmanager
async def upstream(
    body: bytes, coding: bytes = b"", *, status: bytes = b"200 OK", kind: bytes = EVENT_STREAM
) -> AsyncIterator[tuple[str, list[bytes]]]:
    """A server that answers everything with `body`; its URL, and the heads of the requests it got."""
    heads: list[bytes] = []

    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        with suppress(OSError, asyncio.IncompleteReadError):
            async with asyncio.timeout(5):
                heads.append(await reader.readuntil(b"\r\n\r\n"))
                encoded = b"Content-Encoding: %b\r\n" % coding if coding else b""
                head = b"HTTP/1.1 %b\r\nContent-Type: %b\r\n%bConnection: close\r\n\r\n" % (status, kind, encoded)
                writer.write(head + body)
                await writer.drain()
        writer.close()

    async with await asyncio.start_server(serve, "127.0.0.1") as server:
        yield f"http://127.0.0.1:{server.sockets[0].getsockname()[1]}/v1", heads


async def ask(url: str) -> str:
    """One streamed request through the guard, as a run makes it."""
    client = ModelClient(PATIENT, {})
    try:
        return await Asked(client, url).ask("hello")
    finally:
        await client.aclose()


async def test_no_coding_is_asked_for() -> None:
    """What is not compressed cannot be a bomb, and a proxy has no reason to hold tokens back until a block is full."""
    async with upstream(answer("tides")) as (url, heads):
        assert await ask(url) == "tides"
    assert [head.lower().count(b"accept-encoding: identity\r\n") for head in heads] == [1]
    assert b"gzip" not in heads[0].lower()


@pytest.mark.parametrize(
    ("coding", "encode"),
    [(b"gzip", gzip.compress), (b"x-gzip", gzip.compress), (b"deflate", zlib.compress), (b"deflate", raw_deflate)],
    ids=["gzip", "x-gzip", "deflate", "deflate without a header"],
)
async def test_an_answer_that_is_compressed_all_the_same_is_read(coding: bytes, encode: object) -> None:
    """A proxy that compresses unasked must not break a model that works."""
    assert callable(encode)
    async with upstream(encode(answer("tides")), coding) as (url, _):
        assert await ask(url) == "tides"


@pytest.mark.parametrize("coding", [b"br", b"zstd", b"gzip, gzip", b"rot13"])
async def test_a_coding_that_is_not_read_is_refused_by_its_name(coding: bytes) -> None:
    """P8: undecoded bytes would be read as no answer at all, and nobody would know why."""
    async with upstream(b"\x00" * 100, coding) as (url, _):
        with pytest.raises(ModelBadResponse, match="switch compression off") as raised:
            await ask(url)
    assert coding.decode() in str(raised.value)


async def test_what_says_gzip_and_is_not_is_the_models_error() -> None:
    """P8: the message says what was wrong, not that a connection was lost."""
    async with upstream(answer("tides"), b"gzip") as (url, _):
        with pytest.raises(ModelBadResponse, match="says that it is gzip, and is not"):
            await ask(url)


@pytest.mark.parametrize(
    ("status", "error"), [(b"200 OK", ModelBadResponse), (b"500 Oh", ModelHTTPError)], ids=["answer", "error's page"]
)
async def test_a_bomb_is_given_up_at_the_bound(status: bytes, error: type[ModelAPIError]) -> None:
    """P7: 64 KiB on the wire were 64 MiB in the memory of the worker, for each request at once."""
    bomb = gzip.compress(b"data: " + b"x" * (4 * PIECE_BYTES_MAX))
    async with upstream(bomb, b"gzip", status=status) as (url, _):
        with pytest.raises(error) as raised:
            await ask(url)
    if error is ModelBadResponse:
        assert f"larger than {PIECE_BYTES_MAX} bytes" in str(raised.value)


class _Once(httpx2.AsyncByteStream):
    """A body in one piece."""

    def __init__(self, body: bytes) -> None:
        self.body = body

    async def __aiter__(self) -> AsyncIterator[bytes]:
        yield self.body


async def test_other_tasks_have_their_turn_while_an_answer_is_decoded() -> None:
    """One chunk on the wire that decodes to thousands of pieces would block the loop, and its worker be killed."""
    turns = 0

    async def others() -> None:
        nonlocal turns
        while True:
            turns += 1
            await asyncio.sleep(0)

    comments = b":\n\n" * (8 * MIB // 3)
    stream = BoundedStream(_Once(gzip.compress(comments)), shape="events", piece_bytes=MIB, coding="gzip")
    beside = asyncio.create_task(others())
    sizes = [len(piece) async for piece in stream]
    beside.cancel()
    assert sum(sizes) == len(comments)
    assert max(sizes) <= DECODED_BYTES
    assert turns >= len(comments) // DECODED_BYTES


@pytest.mark.parametrize(
    ("shape", "fits"), [("events", True), ("whole", False), ("failed", True)], ids=["events", "whole", "failed"]
)
async def test_blank_lines_end_events_and_nothing_else(shape: str, fits: bool) -> None:
    """A whole answer with a blank line in each megabyte was no longer bounded at all."""
    lines = (b"x" * 1000 + b"\n\n") * 2_000
    assert shape in ("events", "whole", "failed")
    stream = BoundedStream(_Once(gzip.compress(lines)), shape=shape, piece_bytes=MIB, coding="gzip")
    read = 0
    try:
        async for piece in stream:
            read += len(piece)
    except AnswerTooLarge:
        assert not fits
    else:
        assert fits
        assert read == len(lines) if shape == "events" else read <= ERROR_BYTES_MAX + DECODED_BYTES


@pytest.mark.parametrize(
    ("asked", "kind", "bounded"),
    [
        (b'{"stream": true}', "application/json", False),
        (b'{"stream":true}', "text/plain", False),
        (b"{}", "text/event-stream", False),
        (b'{"stream":false}', "application/json", True),
        (b'{"messages":[{"content":"\\"stream\\":true"}]}', "application/json", True),
    ],
    ids=["called JSON", "called text", "streamed unasked", "whole", "whole, with the words in a prompt"],
)
async def test_what_was_asked_for_says_what_a_piece_is(asked: bytes, kind: str, bounded: bool) -> None:
    """A stream that a server calls JSON is still one, and may be longer than a whole answer may be."""
    body = b"data: 1234567890123\n\n" * (PIECE_BYTES_MAX // 20)

    def respond(request: httpx2.Request) -> httpx2.Response:
        return httpx2.Response(200, headers={"Content-Type": kind}, stream=_Once(body), request=request)

    async with httpx2.AsyncClient(transport=ProbedTransport(httpx2.MockTransport(respond), 1.0)) as client:
        sent = client.build_request("POST", "http://model.test/v1", content=asked)
        response = await client.send(sent, stream=True)
        try:
            read = sum([len(piece) async for piece in response.aiter_bytes()])
        except AnswerUnreadable:
            read = 0
        await response.aclose()
    assert (read == 0) is bounded


async def test_whether_a_model_is_there_is_told_by_its_head_alone() -> None:
    """P7: the list of models of whatever answers there was read whole, into the process that serves clients."""
    bomb = gzip.compress(b"x" * (64 * MIB))
    async with upstream(bomb, b"rot13", kind=b"application/json") as (url, heads):
        reached = await probe_model(url)
    assert reached.reachable
    assert b"accept-encoding: identity\r\n" in heads[0].lower()

"""Upstreams that send without end what nobody can use before it ends: it must not be held until the memory is full."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager, suppress

import pytest
from pydantic_ai.exceptions import ModelAPIError, ModelHTTPError

from holdfast.models import ModelBadResponse, ModelClient
from holdfast.models.bounds import ERROR_BYTES_MAX
from holdfast.models.transport import PIECE_BYTES_MAX
from tests.models.test_guard import PATIENT, Asked

CHUNK = b"x" * 65_536
LIMIT_S = 5.0


@asynccontextmanager
async def endless(head: bytes) -> AsyncIterator[tuple[str, list[int]]]:
    """A server that answers with `head` and then one line that never ends; its URL, and how much each answer took."""
    sent: list[int] = []

    async def answer(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        with suppress(OSError, asyncio.IncompleteReadError):
            async with asyncio.timeout(LIMIT_S):
                await reader.readuntil(b"\r\n\r\n")
                writer.write(b"HTTP/1.1 " + head + b"\r\nTransfer-Encoding: chunked\r\n\r\n")
                sent.append(0)
                while sent[-1] < 4 * max(ERROR_BYTES_MAX, PIECE_BYTES_MAX):
                    writer.write(b"%x\r\n%b\r\n" % (len(CHUNK), CHUNK))
                    await writer.drain()
                    sent[-1] += len(CHUNK)
        writer.close()

    async with await asyncio.start_server(answer, "127.0.0.1") as server:
        yield f"http://127.0.0.1:{server.sockets[0].getsockname()[1]}/v1", sent


@pytest.mark.parametrize(
    ("head", "error", "at_most"),
    [
        (b"401 Unauthorized\r\nContent-Type: text/html", ModelHTTPError, ERROR_BYTES_MAX),
        (b"200 OK\r\nContent-Type: text/event-stream", ModelBadResponse, PIECE_BYTES_MAX),
    ],
    ids=["an error's page", "one line of a stream"],
)
async def test_what_has_no_end_is_cut_and_the_request_fails(head: bytes, error: type, at_most: int) -> None:
    """P7: 400 MB in four seconds were held for a page that said no."""
    client = ModelClient(PATIENT, {})
    try:
        async with endless(head) as (url, sent):
            with pytest.raises(ModelAPIError) as raised:
                await Asked(client, url).ask("hello")
            assert isinstance(raised.value, error), raised.value
            assert sent
            assert max(sent) <= at_most + 16 * 1024 * 1024  # what was under way in sockets
    finally:
        await client.aclose()

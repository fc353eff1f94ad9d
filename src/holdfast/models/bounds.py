"""Bounds what a parser above an HTTP response has to hold, however the response is framed, encoded or without end.

    an event stream       one event, from the blank line that ends one to the next
    a whole answer        all of it
    an error's page       all of it, and no more is read than that

The bound is on what the parser gets, so compressed bytes are decoded here, in pieces: 64 KiB on the wire may be 64 MiB
of answer, and an HTTP library hands them on one after the other without ever giving the loop back. None of our requests
asks for a coding; gzip and deflate are taken all the same, because there are proxies that do not ask. Any other coding
is refused by name.
"""

from __future__ import annotations

import asyncio
import zlib
from collections.abc import AsyncIterator, Callable, Iterator
from typing import Final, Literal

import httpx2

ERROR_BYTES_MAX: Final = 262_144  # of the page that comes with an error's status; the rest is not read
DECODED_BYTES: Final = 65_536  # of a compressed answer in one piece; then other tasks have their turn
ACCEPT_ENCODING: Final = "Accept-Encoding"
_CODINGS: Final = {"gzip": zlib.MAX_WBITS | 16, "x-gzip": zlib.MAX_WBITS | 16, "deflate": zlib.MAX_WBITS}
_ENDS: Final = (b"\n\n", b"\r\n\r\n", b"\r\r")  # of an event

Shape = Literal["events", "whole", "failed"]


class AnswerUnreadable(httpx2.RemoteProtocolError):
    """A body that we do not read: it would not fit, or is encoded in a way that we did not ask for."""


class AnswerTooLarge(AnswerUnreadable):
    """A piece of an answer has no end in sight."""


class BoundedStream(httpx2.AsyncByteStream):
    """A response's body, decoded, of which no piece is larger than a parser should have to hold."""

    def __init__(
        self,
        inner: httpx2.AsyncByteStream,
        *,
        shape: Shape,
        piece_bytes: int,
        coding: str = "",
        told: Callable[[], None] | None = None,
    ) -> None:
        """Bound `inner`.

        Args:
            inner: The body as it comes.
            shape: What a piece is.
            piece_bytes: How large one may be.
            coding: Its Content-Encoding, one that `coding_of` has passed.
            told: Called for each chunk that comes, comments and keepalives included.
        """
        self._inner = inner
        self._shape = shape
        self._piece_bytes = piece_bytes
        self._coding = coding
        self._told = told
        self._since_end = 0
        self._tail = b""

    async def __aiter__(self) -> AsyncIterator[bytes]:
        decoder = _Decoder(self._coding) if self._coding else None
        read = 0
        async for chunk in self._inner:
            if self._told is not None:
                self._told()
            for piece in decoder.pieces(chunk) if decoder is not None else (chunk,):
                self._bound(piece)
                yield piece
                read += len(piece)
                if self._shape == "failed" and read >= ERROR_BYTES_MAX:
                    return
                if decoder is not None:
                    await asyncio.sleep(0)

    def _bound(self, piece: bytes) -> None:
        """Raise once what has no end yet has become too long; an event's end may lie across two pieces."""
        joined = self._tail + piece
        ended_at = max(joined.rfind(end) for end in _ENDS) if self._shape == "events" else -1
        self._since_end = len(joined) - ended_at if ended_at >= 0 else self._since_end + len(piece)
        self._tail = joined[-3:]
        if self._since_end > self._piece_bytes:
            raise AnswerTooLarge(f"a piece of the answer is larger than {self._piece_bytes} bytes")

    async def aclose(self) -> None:
        """Close the body below."""
        await self._inner.aclose()


class _Decoder:
    """One body's gzip or deflate; deflate with or without its header, because servers disagree on what it means."""

    def __init__(self, coding: str) -> None:
        self._coding = coding
        self._inflate = zlib.decompressobj(_CODINGS[coding])
        self._begun = False

    def pieces(self, chunk: bytes) -> Iterator[bytes]:
        """What `chunk` decodes to, DECODED_BYTES at a time."""
        piece = self._decode(chunk)
        while piece:
            yield piece
            piece = self._decode(self._inflate.unconsumed_tail)

    def _decode(self, data: bytes) -> bytes:
        try:
            piece = self._inflate.decompress(data, DECODED_BYTES)
        except zlib.error as error:
            if self._begun or self._coding != "deflate":
                raise AnswerUnreadable(f"the answer says that it is {self._coding}, and is not: {error}") from error
            self._inflate = zlib.decompressobj(-zlib.MAX_WBITS)
            self._begun = True
            return self._decode(data)
        self._begun = self._begun or bool(data)
        return piece


def coding_of(response: httpx2.Response) -> str:
    """How the body is encoded; "" if it is not.

    Raises:
        AnswerUnreadable: In a way that is not decoded here.
    """
    said = response.headers.get("Content-Encoding", "")
    codings = [coding for each in said.split(",") if (coding := each.strip().lower()) not in ("", "identity")]
    if not codings:
        return ""
    if len(codings) > 1 or codings[0] not in _CODINGS:
        raise AnswerUnreadable(
            f"the answer is encoded as {said[:100]!r}, though none was asked for; switch compression off in the server "
            "or in the proxy before it"
        )
    return codings[0]

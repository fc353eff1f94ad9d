"""Request bodies: read within a size and a time, JSON whatever Content-Type says, checked against a type.

A body over the limit is refused while it is read, so that nobody can make the gateway hold more than the limit.
"""

from __future__ import annotations

import asyncio
import contextlib
import functools
import re
from collections.abc import AsyncIterator
from typing import Any, TypeVar

import msgspec
from starlette.requests import Request

from holdfast.domain.errors import HoldfastError
from holdfast.domain.events import encode_json
from holdfast.domain.ids import is_id
from holdfast.gateway.problems import invalid

T = TypeVar("T", bound=msgspec.Struct)

READ_S = 30.0  # for the whole body; a client that trickles is not served
_LINGER_S = 1.0  # how long a refused body is read on, so that the client sees the refusal and not a reset
METADATA_BYTES_MAX = 65_536
KEY_PATTERN = "^[ -~]{0,255}$"

_KEY = re.compile(KEY_PATTERN)


class ClientGone(Exception):
    """The client went away before its request was whole; nobody is left to answer."""


async def read_json(request: Request, kind: type[T], bytes_max: int) -> T:
    """The body as a `kind`.

    Raises:
        HoldfastError: body_too_large, or invalid_request with the field that is wrong.
        ClientGone: The client went away.
    """
    body = await _read(request, bytes_max)
    try:
        found: T = _decoder(kind).decode(body)
        return found
    except msgspec.ValidationError as error:
        raise invalid(f"the body does not fit: {error}") from error
    except RecursionError as error:
        raise invalid("the body is nested too deeply") from error
    except (msgspec.DecodeError, UnicodeDecodeError) as error:
        raise invalid(f"the body is not JSON: {error}") from error


def check_input(text: str, bytes_max: int) -> str:
    """A prompt that is neither empty nor over its limit."""
    if not text:
        raise invalid("input is empty")
    size = len(text.encode())
    if size > bytes_max:
        raise invalid(f"input has {size} bytes, at most {bytes_max} are allowed")
    return text


def check_id(text: str, what: str) -> str:
    """An id as PROTOCOL allows it."""
    if not is_id(text):
        raise invalid(f"{what} must be 1 to 128 of [A-Za-z0-9._:-]")
    return text


def check_metadata(metadata: dict[str, Any]) -> dict[str, Any]:
    """Metadata that can be stored and given back, nested in what we wrap it in."""
    try:
        size = len(encode_json([[[[[[[[metadata]]]]]]]]))
    except (OverflowError, RecursionError, ValueError, TypeError) as error:
        raise invalid(f"metadata cannot be kept: {error}") from error
    if size > METADATA_BYTES_MAX:
        raise invalid(f"metadata has {size} bytes, at most {METADATA_BYTES_MAX} are allowed")
    return metadata


def idempotency_key(request: Request) -> str:
    """The header Idempotency-Key, or ""."""
    key = request.headers.get("idempotency-key", "")
    if _KEY.fullmatch(key) is None:
        raise invalid("Idempotency-Key must be at most 255 printable ASCII characters")
    return key


async def _read(request: Request, bytes_max: int) -> bytes:
    declared = request.headers.get("content-length", "")
    if declared.isdigit() and int(declared) > bytes_max:
        if "expect" not in request.headers:
            await _linger(request, bytes_max)
        raise _too_large(bytes_max)
    chunks: list[bytes] = []
    size = 0
    try:
        async with asyncio.timeout(READ_S):
            async for chunk in _chunks(request):
                chunks.append(chunk)
                size += len(chunk)
                if size > bytes_max:
                    break
            else:
                return b"".join(chunks)
    except TimeoutError:
        raise invalid(f"the body was not whole after {READ_S:.0f} s") from None
    chunks.clear()
    await _linger(request, bytes_max)
    raise _too_large(bytes_max)


async def _linger(request: Request, bytes_max: int) -> None:
    """Read a refused body on for a moment and keep nothing: a close with unread input would reset our answer."""
    size = 0
    with contextlib.suppress(TimeoutError):
        async with asyncio.timeout(_LINGER_S):
            async for chunk in _chunks(request):
                size += len(chunk)
                if size > bytes_max:
                    return


async def _chunks(request: Request) -> AsyncIterator[bytes]:
    while True:
        message = await request.receive()
        if message["type"] == "http.disconnect":
            raise ClientGone
        yield message.get("body", b"")
        if not message.get("more_body", False):
            return


def _too_large(bytes_max: int) -> HoldfastError:
    return HoldfastError("body_too_large", f"the body is over {bytes_max} bytes")


@functools.cache
def _decoder(kind: Any) -> msgspec.json.Decoder[Any]:
    return msgspec.json.Decoder(kind)

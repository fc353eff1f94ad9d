"""Bounds what an MCP server over HTTP may send in one message: the same limit as over stdio, where the relay keeps it.

The library bounds an event of a stream, and reads a whole answer (`application/json`), or the page that comes with an
error, to its end. So the client that a transport makes is given two hooks: nothing is asked for compressed, and each
body is bounded by what it decodes to. What is too large fails its call, and the connection serves on.
"""

from __future__ import annotations

import inspect
from collections.abc import AsyncIterator, Callable
from typing import Any, Final

import httpx2

from holdfast.models import AnswerUnreadable, BoundedStream, coding_of

_FAILED: Final = 300  # and above, of a status
_OURS: Final = "_holdfast_bounded"


def bound_messages(transport: Any, message_bytes: int) -> None:
    """Let the HTTP client of `transport` read no message that is larger; nothing to do for one without a client."""
    if not hasattr(transport, "httpx_client_factory") or hasattr(transport, _OURS):
        return
    inner = transport.httpx_client_factory or transport._make_verify_factory() or _default_factory()
    takes = inspect.signature(inner).parameters
    any_name = any(each.kind is inspect.Parameter.VAR_KEYWORD for each in takes.values())

    def factory(**given: Any) -> Any:
        client = inner(**{name: value for name, value in given.items() if any_name or name in takes})
        _add_hooks(client, message_bytes)
        return client

    transport.httpx_client_factory = factory
    setattr(transport, _OURS, True)


def _default_factory() -> Callable[..., Any]:
    from mcp.shared._httpx_utils import create_mcp_http_client

    return create_mcp_http_client


def _add_hooks(client: Any, message_bytes: int) -> None:
    hooks = client.event_hooks
    if any(getattr(each, _OURS, False) for each in hooks.get("response", ())):
        return  # a client of the user's own, which outlives the connection

    async def ask_plain(request: httpx2.Request) -> None:
        request.headers["Accept-Encoding"] = "identity"

    async def bound(response: httpx2.Response) -> None:
        stream = response.stream
        if not isinstance(stream, httpx2.AsyncByteStream):
            return
        coding = coding_of(response)
        response.headers.pop("Content-Encoding", None)
        events = "text/event-stream" in response.headers.get("Content-Type", "")
        shape: Any = "failed" if response.status_code >= _FAILED else "events" if events else "whole"
        response.stream = _Messages(stream, shape=shape, piece_bytes=message_bytes, coding=coding)

    setattr(bound, _OURS, True)
    hooks.setdefault("request", []).append(ask_plain)
    hooks.setdefault("response", []).append(bound)


class _Messages(BoundedStream):
    """A body whose excess is told in the one way that the library takes for the failure of a call."""

    async def __aiter__(self) -> AsyncIterator[bytes]:
        try:
            async for piece in super().__aiter__():
                yield piece
        except AnswerUnreadable as error:
            raise httpx2.StreamError(f"mcp_message_bytes: {error}") from error

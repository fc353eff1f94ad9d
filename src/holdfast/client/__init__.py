"""The client library: start, follow, stop, steer, decide; each run from the offset that the reader names.

`Client` is synchronous, `AsyncClient` the same in coroutines. Importing it imports nothing of the server.
"""

from holdfast.client.async_http import AsyncClient, AsyncFollow
from holdfast.client.calls import DEFAULT_URL
from holdfast.client.errors import (
    ApiError,
    ClientError,
    Conflict,
    Forbidden,
    Gone,
    NotFound,
    RateLimited,
    ServerUnreachable,
    Unauthorized,
    Unavailable,
)
from holdfast.client.http import Client, Follow
from holdfast.client.stream import Backoff, Connection

__all__ = [
    "DEFAULT_URL",
    "ApiError",
    "AsyncClient",
    "AsyncFollow",
    "Backoff",
    "Client",
    "ClientError",
    "Conflict",
    "Connection",
    "Follow",
    "Forbidden",
    "Gone",
    "NotFound",
    "RateLimited",
    "ServerUnreachable",
    "Unauthorized",
    "Unavailable",
]

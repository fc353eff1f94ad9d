"""A small synchronous client: start, watch, stop and inspect runs, from the offset that the reader names."""

from holdfast.client.errors import ApiError, ClientError, ServerUnreachable
from holdfast.client.http import DEFAULT_URL, Client
from holdfast.client.stream import Backoff

__all__ = ["DEFAULT_URL", "ApiError", "Backoff", "Client", "ClientError", "ServerUnreachable"]

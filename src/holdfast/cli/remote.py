"""What the client commands share: where the server is, and how a failed call ends the command.

Exit codes: 0 ok, 1 failed, 2 usage, 3 server unreachable.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any, Concatenate, NoReturn, ParamSpec

import click

from holdfast.domain.ids import is_id

if TYPE_CHECKING:
    from holdfast.client import AsyncClient, Client

DEFAULT_URL = "http://127.0.0.1:8484"  # as in holdfast.client, which is not imported for --help
FAILED = 1
UNREACHABLE = 3

P = ParamSpec("P")


class Remote:
    """The server that a command talks to, and whether it prints JSON."""

    def __init__(self, url: str, api_key: str | None, *, as_json: bool) -> None:
        self.url = url
        self.as_json = as_json
        self.answer_s = 30.0
        self._api_key = api_key

    @contextmanager
    def client(self) -> Iterator[Client]:
        """A client for the length of a command; its errors end the command with one line and a code."""
        from holdfast.client import ClientError

        with self._connect() as client:
            try:
                yield client
            except ClientError as error:
                leave(error)

    def async_client(self) -> AsyncClient:
        """A client for a page that never waits for the server; of an address that `client` has accepted."""
        from holdfast.client import AsyncClient

        return AsyncClient(self.url, self._api_key, busy_s=0.0)

    def _connect(self) -> Client:
        from holdfast.client import Client

        try:
            # who types sees a refusal at once
            return Client(self.url, self._api_key, answer_s=self.answer_s, busy_s=0.0)
        except ValueError as error:
            raise click.UsageError(f"--url {error}") from error


def leave(error: Exception) -> NoReturn:
    """End the command with the error's line: exit 3 where the server was not reached, else 1."""
    from holdfast.client import ServerUnreachable

    click.echo(f"holdfast: {error}", err=True)
    raise click.exceptions.Exit(UNREACHABLE if isinstance(error, ServerUnreachable) else FAILED)


def remote_options(command: Callable[Concatenate[Remote, P], None]) -> Callable[..., None]:
    """Give a command --url, --api-key and --json; it gets them as one `Remote`."""

    @click.option("--url", envvar="HOLDFAST_URL", default=DEFAULT_URL, show_default=True, help="Server. [HOLDFAST_URL]")
    @click.option("--api-key", envvar="HOLDFAST_API_KEY", default=None, help="Key. [HOLDFAST_API_KEY]")
    @click.option("--json", "as_json", is_flag=True, help="Print JSON.")
    @functools.wraps(command)
    def run(*args: Any, url: str, api_key: str | None, as_json: bool, **options: Any) -> None:
        command(Remote(url, api_key, as_json=as_json), *args, **options)

    return run


def check_id(context: click.Context, parameter: click.Parameter, value: str | None) -> str | None:
    """A click callback: an id as the protocol has them, or a usage error."""
    if value is not None and not is_id(value):
        raise click.BadParameter(f"{value!r} is no id: 1 to 128 of A-Z a-z 0-9 . _ : -")
    return value

"""Holdfast inside somebody else's process: `async with holdfast.open(agent) as hold`, and `hold.app` is mounted.

It listens on no port and takes no signal: both are the application's. The gateway and the reaper live on the loop of
whoever opens it, the agents on a thread with a loop of their own. That thread cannot be killed: what a supervised
worker survives (a step that blocks its loop, a tool that takes the interpreter down) costs the application here.
"""

from __future__ import annotations

from collections.abc import AsyncGenerator, Mapping
from contextlib import asynccontextmanager
from typing import Any, Final

from holdfast.app.inside import InsideTransport
from holdfast.app.runtime import Runtime
from holdfast.client import AsyncClient
from holdfast.config.settings import load
from holdfast.gateway.app import GatewayApp
from holdfast.telemetry import Log

_URL: Final = "http://localhost"  # nobody is asked there: it is what the requests say


class Holdfast:
    """An open Holdfast of this process; made by `open`."""

    def __init__(self, runtime: Runtime) -> None:
        """Take what has started."""
        self._runtime = runtime

    @property
    def app(self) -> GatewayApp:
        """The whole gateway as an ASGI app, for `Mount`, `FastAPI.mount`, or a server of its own."""
        return self._runtime.app

    @property
    def agents(self) -> list[str]:
        """The names of the served agents; the first is the default."""
        return [info.name for info in self._runtime.infos]

    def client(self, api_key: str | None = None) -> AsyncClient:
        """The client library on this gateway, without a socket: close it, or use it as a context manager.

        Args:
            api_key: Where the settings have keys, whose requests these are.
        """
        return AsyncClient(_URL, api_key, transport=InsideTransport(self._runtime.app))


@asynccontextmanager
async def open(
    *agents: object,
    model: str = "",
    model_url: str = "",
    store: str = "",
    settings: Mapping[str, Any] | None = None,
    log: Log | None = None,
) -> AsyncGenerator[Holdfast, None]:
    """Start Holdfast in this process, on the running loop; it drains and ends with the block.

    Args:
        agents: A pydantic-ai agent, an async generator function, an object with the port's names, or `module:attr`;
            none at all serves the model as a plain chat.
        model: As --model.
        model_url: As --model-url.
        store: As --store; `sqlite://:memory:` for tests.
        settings: Every other setting by its name. What is not given here comes from the environment, holdfast.toml,
            or the defaults, as with `holdfast serve`.
        log: Where its lines go; standard error by default.

    Raises:
        StartError: It cannot start; says what is missing and what to do.
        SettingsError: A setting is unknown or out of its range.
    """
    named = {"model": model or None, "model_url": model_url or None, "store": store or None}
    merged = load({**(settings or {}), **{k: v for k, v in named.items() if v is not None}, "in_process": True})
    async with Runtime(merged, agents, log=log, listen=False) as runtime:
        yield Holdfast(runtime)


__all__ = ["Holdfast", "open"]

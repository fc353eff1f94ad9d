"""One run, and everybody looks: each protocol is a view of the same log."""

from __future__ import annotations

import asyncio
import json
import subprocess
from contextlib import suppress
from typing import Any

import pytest

from holdfast.client import Client
from tests.deploy.nginx import Nginx
from tests.streams.node import node
from tests.system.openai_reader import chat_completion
from tests.system.support import HOLDFAST, Http, System, frames, until
from tests.ws.support import socket

pytestmark = [pytest.mark.slow, pytest.mark.timeout(120)]

SESSION = "everybody"
SCRIPT = "!think n=3\n!tokens n=20000 rate=40"


def _event_source(http: Http, run: str) -> list[dict[str, Any]]:
    with http.stream(f"/api/runs/{run}/events", limit_s=60) as response:
        return [json.loads(data) for _, _, data in frames(response)]


def _python_client(url: str, run: str) -> list[dict[str, Any]]:
    with Client(url) as client:
        return list(client.follow(run))


def _said(events: list[dict[str, Any]]) -> tuple[str, str]:
    return "".join(e["text"] for e in events if e["type"] == "text.delta"), events[-1]["reason"]


async def test_a_run_of_the_openai_client_is_the_same_for_whoever_watches_it(nginx: Nginx, site: System) -> None:
    """Started by openai-python, watched by five others at once, stopped from the terminal: one text, one end.

    All of them through nginx as it buffers by default.
    """
    url = f"http://127.0.0.1:{nginx.http.port}"
    ask = asyncio.to_thread

    def looking(n: int) -> bool:
        return bool(site.http.get("/health")["readers"] >= n)

    await ask(until, lambda: not looking(1), "nobody looks who came for another run", 30)
    completion = asyncio.create_task(ask(chat_completion, url, "asker", SCRIPT, SESSION))

    def active() -> str | None:
        with suppress(AssertionError):
            found: dict[str, Any] | None = site.http.get(f"/api/sessions/{SESSION}")["active"]
            return None if found is None else found["id"]
        return None

    run = await ask(until, active, "the run is active")
    async with socket(url) as client:
        watchers = [
            asyncio.create_task(ask(node, "ai_sdk.mjs", url, do="resume", chat=SESSION)),
            asyncio.create_task(ask(node, "ag_ui.mjs", url, do="join", thread=SESSION)),
        ]
        # They come to what is active, so they must be there before the stop; none of the three reconnects by itself.
        await ask(until, lambda: looking(len(watchers) + 1), "the two of Node look", 30)
        watchers.append(asyncio.create_task(ask(_event_source, nginx.http, run)))
        watchers.append(asyncio.create_task(ask(_python_client, url, run)))
        await client.ask("subscribe", run=run, after=0)
        await ask(until, lambda: looking(len(watchers) + 1), "everybody looks", 30)
        await ask(subprocess.run, [HOLDFAST, "stop", run, "--url", url], check=True, timeout=30, capture_output=True)
        seen = await asyncio.gather(completion, *watchers)
        end = await client.end_of(run)
        socket_said = "".join(e["text"] for e in client.events(run) if e["type"] == "text.delta")
    (chat, code), ai_sdk, ag_ui, source, library = seen
    record = site.record(run)
    text = _said(site.seen(run))[0]
    assert (record["state"], record["reason"], record["output"]) == ("cancelled", "stopped", text)
    assert text.startswith("t1 t2 t3 ")
    assert (chat, code) == (text, "stopped")
    assert (ai_sdk["text"], ai_sdk["ends"]) == (text, ["abort"])
    assert (ag_ui["text"], [each["outcome"]["type"] for each in ag_ui["ends"]]) == (text, ["cancelled"])
    assert (socket_said, end["reason"]) == (text, "stopped")
    assert _said(source) == _said(library) == (text, "stopped")

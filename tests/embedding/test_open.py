"""`holdfast.open`: in somebody else's process, under the same promises."""

from __future__ import annotations

import asyncio
import io
import threading
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

import httpx2
import pytest
from pydantic_ai import Agent
from starlette.applications import Starlette
from starlette.responses import PlainTextResponse
from starlette.routing import Mount, Route
from websockets.asyncio.client import connect

import holdfast
from holdfast.app.errors import StartError
from holdfast.client import ApiError
from holdfast.config.settings import SettingsError
from holdfast.gateway.server import Server
from holdfast.ports.agent import RunContext
from holdfast.rehearsal import RehearsalServer
from holdfast.telemetry import Log

MEMORY = "sqlite://:memory:"
QUIET = {"synthetic_run_s": 0, "stop_grace_s": 0.5, "drain_s": 0.1}


async def words(ctx: RunContext) -> AsyncIterator[str]:
    for word in ctx.input.split():
        yield word + " "
        await asyncio.sleep(0.01)


async def waits(ctx: RunContext) -> AsyncIterator[str]:
    yield "so far"
    await asyncio.sleep(60)


@asynccontextmanager
async def opened(*agents: Any, **given: Any) -> AsyncIterator[holdfast.app.embedding.Holdfast]:
    settings = QUIET | given.pop("settings", {})
    async with holdfast.open(*agents, store=MEMORY, settings=settings, log=Log(stream=io.StringIO()), **given) as hold:
        yield hold


async def test_a_run_is_started_followed_and_stopped_without_a_socket() -> None:
    """The client library is the whole surface, embedded or not: nothing has to be learned twice."""
    async with opened(words, waits) as hold, hold.client() as client:
        assert hold.agents == ["words", "waits"]
        run = await client.start("one two")
        events = [event async for event in client.follow(run["id"])]
        assert events[0]["type"] == "run.created"
        assert events[-1]["output"] == "one two "
        run = await client.start("x", agent="waits")
        async for event in client.follow(run["id"]):
            if event["type"] == "text.delta":
                stopped = await client.stop(run["id"], wait_s=3)
                assert (stopped["state"], stopped["reason"]) == ("cancelled", "stopped")
        assert event["type"] == "run.cancelled"
        assert event["partial"] == "so far"


async def test_events_come_while_the_run_works() -> None:
    """An answer that is collected before it is handed over would be a stream in name only."""
    async with opened(waits) as hold, hold.client() as client:
        run = await client.start("x")
        async with asyncio.timeout(3):
            async with client.follow(run["id"]) as follow:
                heard = [event["type"] async for event in _until(follow, "text.delta")]
        assert heard[-1] == "text.delta"
        assert (await client.record(run["id"]))["state"] == "running"


async def _until(follow: Any, kind: str) -> AsyncIterator[dict[str, Any]]:
    async for event in follow:
        yield event
        if event["type"] == kind:
            return


async def test_a_client_that_leaves_is_noticed() -> None:
    """on_disconnect: cancel holds here, too: leaving a stream is leaving, socket or not."""
    async with opened(waits) as hold, hold.client() as client:
        body = {"input": "x", "on_disconnect": "cancel"}
        async with client._http.stream(
            "POST", "/api/runs", json=body, headers={"Accept": "text/event-stream"}
        ) as reply:
            run = reply.headers["X-Run-Id"]
            async for text in reply.aiter_text():
                if "so far" in text:
                    break
        async with asyncio.timeout(5):
            events = [event async for event in client.follow(run)]
        assert (events[-1]["type"], events[-1]["reason"]) == ("run.cancelled", "client_disconnect")


async def test_an_agent_of_pydantic_ai_has_the_model_that_is_named() -> None:
    """The same words as on the command line mean the same."""
    async with RehearsalServer() as model:
        agent = Agent(name="diver")
        async with opened(agent, model="rehearsal", model_url=model.url) as hold, hold.client() as client:
            run = await client.start("!say hello")
            events = [event async for event in client.follow(run["id"])]
            assert events[-1]["output"].strip() == "hello"
            assert (await client.record(run["id"]))["rehearsal"]


async def test_mounted_below_a_path_everything_is_as_at_the_root() -> None:
    """Routes, errors in the shape of their protocol, the socket, and the address of what was made."""
    async with opened(words) as hold, _site(hold) as (url, port):
        async with httpx2.AsyncClient(base_url=url, timeout=5) as http:
            assert (await http.get("/")).text == "the application's own"
            made = await http.post("/agents/api/runs", json={"input": "one two"})
            assert made.headers["Location"] == f"/agents/api/runs/{made.json()['id']}"
            stream = await http.get(made.headers["Location"] + "/events", headers={"Accept": "text/event-stream"})
            assert "event: run.completed" in stream.text
            chat = {"messages": [{"role": "user", "content": "three"}]}
            answer = await http.post("/agents/v1/chat/completions", json=chat)
            assert answer.json()["choices"][0]["message"]["content"] == "three "
            assert "error" in (await http.post("/agents/v1/chat/completions", json={})).json()
            async with asyncio.timeout(5):
                while (await http.get("/agents/readyz")).status_code != 200:  # until its worker has reported
                    await asyncio.sleep(0.05)
            assert (await http.get("/agents/nothing")).json()["code"] == "not_found"
            assert "<title>" in (await http.get("/agents/")).text
        async with connect(f"ws://127.0.0.1:{port}/agents/api/ws") as socket, asyncio.timeout(5):
            assert '"op":"ready"' in str(await socket.recv())


@asynccontextmanager
async def _site(hold: Any) -> AsyncIterator[tuple[str, int]]:
    async def own(request: Any) -> PlainTextResponse:
        return PlainTextResponse("the application's own")

    app = _Served(Starlette(routes=[Route("/", own), Mount("/agents", hold.app)]), hold.app)
    server = Server(app, "127.0.0.1", 0, connections=64, log=Log(stream=io.StringIO()))
    await server.start()
    try:
        yield f"http://127.0.0.1:{server.port}", server.port
    finally:
        await server.stop(0.2)


class _Served:
    """Another app where our server, which is at hand, expects a gateway."""

    def __init__(self, app: Any, gateway: Any) -> None:
        self._app = app
        self.settings = gateway.settings
        self.count_connections = gateway.count_connections
        self.close_readers = gateway.close_readers
        self.close = gateway.close

    async def __call__(self, scope: Any, receive: Any, send: Any) -> None:
        await self._app(scope, receive, send)


async def test_without_keys_a_client_of_another_machine_is_refused_wherever_it_is_mounted() -> None:
    """The address that is listened on is the application's choice; who may enter without a key is not."""
    async with opened(words) as hold:
        transport = httpx2.ASGITransport(hold.app, client=("192.0.2.7", 1))
        async with httpx2.AsyncClient(transport=transport, base_url="http://localhost") as http:
            answer = await http.get("/api/runs")
            assert (answer.status_code, answer.json()["code"]) == (403, "forbidden_origin")


async def test_with_keys_the_client_of_the_process_needs_one_too() -> None:
    """Whose runs these are is not guessed."""
    key = "k" * 32
    async with opened(words, settings={"api_keys": f"alice:{key}"}) as hold:
        async with hold.client() as nobody:
            with pytest.raises(ApiError, match="unauthorized"):
                await nobody.runs()
        async with hold.client(key) as alice:
            assert (await alice.runs())["runs"] == []


async def test_the_block_ends_with_nothing_left() -> None:
    """An application that opens and closes it, as its tests do, ends with the threads that it began with."""
    async with opened(words):  # what is made once in a process
        pass
    before, threads = len(asyncio.all_tasks()), threading.active_count()
    async with opened(waits) as hold:
        client = hold.client()
        run = await client.start("x")
        follow = client.follow(run["id"])
        assert (await anext(follow))["type"] == "run.created"
    await follow.aclose()
    await client.aclose()
    async with asyncio.timeout(3):
        while len(asyncio.all_tasks()) > before or threading.active_count() > threads:
            await asyncio.sleep(0.01)


async def test_what_is_wrong_is_said_when_it_is_opened() -> None:
    """Nothing is served that cannot work, here as on the command line."""
    with pytest.raises(StartError, match="must be a pydantic_ai"):
        async with opened(7):
            pass
    with pytest.raises(SettingsError, match="unknown setting stop_grace"):
        async with opened(words, settings={"stop_grace": 1}):
            pass

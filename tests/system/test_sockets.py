"""The WebSocket of `holdfast serve`: real processes, a real model server, a kill and a drain."""

import asyncio
import json
import signal
from collections.abc import Callable

import pytest

from tests.system.support import System
from tests.ws.support import Client, socket

pytestmark = [pytest.mark.slow, pytest.mark.timeout(120)]


def url(system: System) -> str:
    return f"http://127.0.0.1:{system.http.port}"


def said(client: Client, run: str) -> str:
    return "".join(e["text"] for e in client.events(run) if e["type"] == "text.delta")


async def test_one_socket_does_a_clients_whole_work(system: System) -> None:
    """Two runs at once, a stop that closes the model's connection, the agent view of a tool, and the text is exact."""
    async with socket(url(system)) as client, socket(url(system), "?view=agent") as agent:
        assert client.ready["takes_runs"] is True, client.ready
        whole = (await client.ask("start", input="!tokens n=60 rate=200"))["run"]
        long = (await client.ask("start", input="!tokens n=5000 rate=50"))["run"]
        tool = (await agent.ask("start", input='!tool nap {"seconds": 0.1}\n!say done'))["run"]
        await client.until(lambda f: f.get("run") == long and f.get("type") == "text.delta")
        stop = await client.ask("stop", run=long)
        assert stop["of"] == "stop"
        end = await client.end_of(long)
        assert (end["type"], end["reason"], end["receipt"]["abandoned"]) == ("run.cancelled", "stopped", False)
        assert (await client.end_of(whole))["output"].split() == [f"t{n}" for n in range(1, 61)]
        assert said(client, whole).split() == [f"t{n}" for n in range(1, 61)]
        for run in (whole, long):
            assert [e["seq"] for e in client.events(run)] == list(range(1, len(client.events(run)) + 1))
        assert (await agent.end_of(tool))["output"] == "done"
        kinds = [f["type"] for f in agent.events(tool) if f["type"] != "agent_thinking"]
        assert kinds == ["agent_started", "tool_executing", "tool_completed", "agent_completed"]


@pytest.mark.chaos
async def test_a_run_is_resumed_over_the_socket_after_kill_9_and_after_a_drain(
    start_system: Callable[..., System],
) -> None:
    """P9 for this protocol: what was seen is there again, what follows comes once, whichever way the server ended."""
    system = start_system(HOLDFAST_DRAIN_S="0.5")
    script = "!tokens n=3000 rate=100"
    async with socket(url(system)) as client:
        run = (await client.ask("start", input=script))["run"]
        await client.until(lambda f: f.get("type") == "text.delta")
        await asyncio.to_thread(system.server.signal, signal.SIGKILL)
        await client.closed()
        seen = [f for f in client.seen if f["op"] == "event"]
    await asyncio.to_thread(system.server.wait)
    await asyncio.to_thread(system.start)
    async with socket(url(system)) as client:
        await client.ask("subscribe", run=run, after=seen[-1]["event_id"])
        await client.until(lambda f: f.get("type") == "text.delta")
        await asyncio.to_thread(system.server.signal, signal.SIGTERM)
        code, reason = await client.closed()
        assert (code, reason.startswith(f"draining; resume {run} after ")) == (1013, True)
        seen += [f for f in client.seen if f["op"] == "event"]
        assert reason.endswith(seen[-1]["event_id"])
    assert await asyncio.to_thread(system.server.wait) == 0
    await asyncio.to_thread(system.start)
    async with socket(url(system)) as client:
        await client.ask("subscribe", run=run, after=seen[-1]["event_id"])
        await client.ask("stop", run=run)
        await client.end_of(run)
        seen += [f for f in client.seen if f["op"] == "event"]
    assert [f["seq"] for f in seen] == list(range(1, len(seen) + 1))
    status, log = await asyncio.to_thread(
        system.http.ask, "GET", f"/api/runs/{run}/events", None, {"Accept": "application/x-ndjson"}
    )
    assert status == 200
    rows = [json.loads(line) for line in log.splitlines() if line]
    assert [{k: v for k, v in f.items() if k not in ("op", "event_id")} for f in seen] == rows

"""MCP servers that behave badly, as real processes: the call ends, the run goes on, and no process is left."""

import asyncio
import contextlib
import json
import os
import subprocess
import sys
import time
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import psutil
import pytest
import pytest_asyncio
from fastmcp.client.transports import StdioTransport
from pydantic_ai import Agent
from pydantic_ai.mcp import MCPToolset
from pydantic_ai.toolsets import DynamicToolset

from holdfast.agents import PydanticAgent
from holdfast.agents.mcp import RELAY, McpGuard, McpLimits
from holdfast.domain.runs import Reason
from holdfast.ports.agent import ToolCalled, ToolFinished
from tests.agents.rules import problems
from tests.agents.support import Rig, Told, context, tell, until

FULL = os.environ.get("HOLDFAST_FULL", "") not in ("", "0")
SERVER = Path(__file__).with_name("mcp_server.py")
ECHO = '!tool echo {"text": "again"}'

pytestmark = [pytest.mark.slow, pytest.mark.timeout(30)]


class Site:
    """One server, the journal that it writes, and an agent that has its tools."""

    def __init__(self, rig: Rig, path: Path, mode: str = "") -> None:
        self.rig = rig
        self.journal = path / "journal.jsonl"
        self.journal.touch()
        self.toolset = MCPToolset(StdioTransport(sys.executable, [str(SERVER), str(self.journal), mode]))
        rig.settings = rig.settings.model_copy(update={"tool_timeout_s": 6.0, "mcp_start_s": 8.0})

    def agent(self, timeout_s: float | None = None) -> PydanticAgent:
        if timeout_s is not None:
            self.rig.settings = self.rig.settings.model_copy(update={"tool_timeout_s": timeout_s})
        agent: Agent[Any, Any] = Agent(self.rig.model, toolsets=[self.toolset])
        return PydanticAgent(agent, "test", self.rig.settings, self.rig.pool)

    async def run(self, *lines: str, timeout_s: float | None = None) -> Told:
        return await tell(self.agent(timeout_s).run(context("\n".join(lines))), limit_s=20.0)

    def notes(self, what: str) -> list[dict[str, Any]]:
        found = [json.loads(line) for line in self.journal.read_text().splitlines()]
        return [note for note in found if note["what"] == what]

    @property
    def pids(self) -> list[int]:
        return [note["pid"] for note in self.notes("began")]

    async def close(self) -> None:
        with contextlib.suppress(Exception):
            await self.toolset.client.close()
        await until(lambda: not any(alive(pid) for pid in self.pids), 8.0)


def alive(pid: int) -> bool:
    with contextlib.suppress(psutil.NoSuchProcess):
        return psutil.Process(pid).status() != psutil.STATUS_ZOMBIE
    return False


@pytest_asyncio.fixture
async def site(rig: Rig, tmp_path: Path) -> AsyncIterator[Site]:
    made = Site(rig, tmp_path)
    yield made
    await made.close()


async def test_a_server_works_and_one_process_serves_run_after_run(site: Site) -> None:
    """The plain case: a guard that starts a server for each run would cost a second each time."""
    for _ in range(2):
        told = await site.run(ECHO, "!say done")
        assert told.outcomes() == {"echo": "success"}
        assert told.of(ToolFinished)[0].result == "again"
    assert len(site.pids) == 1
    assert problems(site.rig.sent()) == []


async def test_a_tool_error_of_the_server_is_a_failed_result(site: Site) -> None:
    """However often: its budget of retries ends no run either."""
    told = await site.run("!tool fail {}", "!say a", "!tool fail {}", "!say b", "!tool fail {}", "!say c")
    assert [event.outcome for event in told.of(ToolFinished)] == ["failed"] * 3
    assert "it broke" in told.of(ToolFinished)[0].result
    assert told.result.output == "c"


async def test_a_call_that_times_out_is_cancelled_by_the_protocol(site: Site) -> None:
    """The server must hear of it, else it works on for nobody."""
    told = await site.run("!tool polite {}", "!say a", ECHO, "!say done", timeout_s=1.0)
    assert told.outcomes() == {"polite": "timeout", "echo": "success"}
    assert len(site.notes("cancelled")) == 1
    assert len(site.notes("obeyed")) == 1
    assert len(site.pids) == 1, "a server that obeys is not restarted"


@pytest.mark.parametrize("tool", ["polite", "hang", "notes", "line"] if FULL else ["polite", "notes"])
async def test_stop_is_heard_by_the_server_and_bounded_whatever_it_does(site: Site, tool: str) -> None:
    """P2: a server that ignores the cancellation, or floods, holds up nobody's Stop."""
    told = Told()
    running = asyncio.ensure_future(tell(site.agent().run(context(f"!tool {tool} {{}}")), told, limit_s=20.0))
    await until(lambda: bool(site.notes("called")), 15.0)
    began = time.monotonic()
    running.cancel()
    with pytest.raises(asyncio.CancelledError):
        async with asyncio.timeout(10.0):
            await running
    assert time.monotonic() - began < 2.0
    if tool != "line":  # whose server may be dead by then
        await until(lambda: bool(site.notes("cancelled")), 5.0)
        after = await site.run(ECHO, "!say done")
        assert after.outcomes() == {"echo": "success"}


async def test_a_server_that_ignores_its_cancellation_still_serves(site: Site) -> None:
    """Its thread is its own affair; what it can still do, it may."""
    told = await site.run("!tool hang {}", "!say a", ECHO, "!say done", timeout_s=1.0)
    assert told.outcomes() == {"hang": "timeout", "echo": "success"}
    assert len(site.pids) == 1


async def test_a_server_that_is_deaf_after_a_call_is_started_anew(site: Site, monkeypatch: Any) -> None:
    """F61: one call that jams the server must not break all that follow."""
    monkeypatch.setattr("holdfast.agents.mcp.PING_S", 0.5)
    told = await site.run("!tool jam {}", "!say a", ECHO, "!say done", timeout_s=3.5)
    assert told.outcomes() == {"jam": "timeout", "echo": "success"}
    assert len(site.pids) == 2
    await until(lambda: not alive(site.pids[0]), 5.0)


async def test_a_server_that_dies_fails_what_was_under_way_and_is_started_anew(site: Site) -> None:
    """The cause is in the result, a sibling does not wait for ever, and the next call works."""
    began = time.monotonic()
    told = await site.run("!tool hang {}", "!tool die {}", "!say a", ECHO, "!say done", timeout_s=8.0)
    assert time.monotonic() - began < 8.0
    assert told.outcomes() == {"hang": "failed", "die": "failed", "echo": "success"}
    assert "code 3" in str([event.result for event in told.of(ToolFinished)])
    assert len(site.pids) == 2
    assert told.result.output == "done"


async def test_a_server_that_died_between_two_runs_is_started_anew(site: Site) -> None:
    """Nobody used it, so nobody noticed."""
    assert (await site.run(ECHO, "!say done")).outcomes() == {"echo": "success"}
    psutil.Process(site.pids[0]).kill()
    await until(lambda: not alive(site.pids[0]))
    assert (await site.run(ECHO, "!say done")).outcomes() == {"echo": "success"}
    assert len(site.pids) == 2


@pytest.mark.parametrize("per_run_step", [False, True])
async def test_a_server_that_a_function_makes_is_guarded_too(site: Site, per_run_step: bool) -> None:
    """How an agent came by its server changes nothing of what is promised of it."""
    made: list[MCPToolset[Any]] = []

    async def make(ctx: Any) -> MCPToolset[Any]:
        made.append(site.toolset)
        return site.toolset

    agent: Agent[Any, Any] = Agent(site.rig.model, toolsets=[DynamicToolset(make, per_run_step=per_run_step)])
    run = PydanticAgent(agent, "test", site.rig.settings, site.rig.pool).run
    told = await tell(run(context(f"!tool die {{}}\n!say a\n{ECHO}\n!say done")), limit_s=20.0)
    assert told.outcomes() == {"die": "failed", "echo": "success"}
    assert "code 3" in told.of(ToolFinished)[0].result
    assert len(site.pids) == 2
    assert made


FLOODS = {
    "flood": ("failed", "mcp_message_bytes"),
    "line": ("failed", "end of line"),
    "notes": ("timeout", "did not finish"),
    "junk": ("success", "after the junk"),
    "errors": ("success", "complained"),
}


@pytest.mark.parametrize("tool", FLOODS)
async def test_a_server_that_floods_costs_its_call_and_nobodys_memory(site: Site, tool: str) -> None:
    """Fifty megabytes, a line without end, notifications for ever: bounded before they reach the worker."""
    await site.run(ECHO, "!say warm")
    process = psutil.Process()
    before = process.memory_info().rss
    outcome, said = FLOODS[tool]
    told = await site.run(f"!tool {tool} {{}}", "!say a", ECHO, "!say done", timeout_s=2.0 if tool == "notes" else None)
    assert told.outcomes() == {tool: outcome, "echo": "success"}
    assert said in told.of(ToolFinished)[0].result
    assert told.result.output == "done"
    assert process.memory_info().rss - before < 40 * 1024 * 1024


@pytest.mark.parametrize(
    ("mode", "said"), [("crash", "no licence"), ("silent", "did not answer in 1.5 s"), ("missing", "No such file")]
)
async def test_a_server_that_does_not_start_ends_the_run_with_its_cause(
    rig: Rig, tmp_path: Path, mode: str, said: str
) -> None:
    """An agent without its tools would answer something else; a wait for the deadline would say nothing."""
    site = Site(rig, tmp_path, mode)
    if mode == "missing":
        site.toolset = MCPToolset(StdioTransport("/nowhere/mcp-server", []))
    if mode == "silent":
        rig.settings = rig.settings.model_copy(update={"mcp_start_s": 1.5})
    began = time.monotonic()
    told = await site.run(ECHO, "!say done")
    assert time.monotonic() - began < 8.0
    assert told.ended is not None
    assert (told.ended.reason, told.ended.code) == (Reason.AGENT_ERROR, "mcp_unavailable")
    assert said in told.ended.message
    assert told.ended.remedy
    assert told.of(ToolCalled) == []
    await site.close()


async def test_a_deaf_server_that_works_for_another_run_is_left_alone() -> None:
    """One run's broken call must not end another's good one."""

    class Client:
        closed = 0

        async def ping(self) -> bool:
            raise TimeoutError

        async def close(self) -> None:
            self.closed += 1

        async def __aenter__(self) -> "Client":
            return self

    class Toolset:
        label = "stub"

        def __init__(self) -> None:
            self.client = Client()

    toolset: Any = Toolset()
    guard = McpGuard(toolset, McpLimits(1.0, 100_000))
    connection = guard._connection
    connection.suspect, connection.calls = True, 1
    await guard._ready()
    assert (toolset.client.closed, connection.suspect) == (0, True)
    connection.calls = 0
    await guard._ready()
    assert (toolset.client.closed, connection.suspect) == (1, False)


@pytest.mark.parametrize("mode", ["", "stubborn"] if FULL else ["stubborn"])
async def test_a_worker_that_is_killed_leaves_no_server(tmp_path: Path, mode: str) -> None:
    """P2 and P9: kill -9 of a worker must not leave a process that nobody can name."""
    journal = tmp_path / "journal.jsonl"
    journal.touch()
    held = [sys.executable, "-I", "-S", str(RELAY), "100000", sys.executable, str(SERVER), str(journal), mode]
    script = f"import subprocess, time; subprocess.Popen({held!r}, stdin=subprocess.PIPE, start_new_session=True)"
    worker = subprocess.Popen([sys.executable, "-c", f"{script}; time.sleep(60)"], stdout=subprocess.DEVNULL)
    try:
        await until(lambda: "began" in journal.read_text(), 10.0)
        pid = json.loads(journal.read_text().splitlines()[0])["pid"]
        relay = psutil.Process(pid).ppid()
        assert alive(pid)
    finally:
        os.kill(worker.pid, 9)
        worker.wait(10)
    await until(lambda: not alive(pid) and not alive(relay), 10.0)


async def test_a_relay_that_is_killed_takes_its_server_with_it(tmp_path: Path) -> None:
    """The last resort of whoever ends a relay is SIGKILL."""
    journal = tmp_path / "journal.jsonl"
    journal.touch()
    held = [sys.executable, "-I", "-S", str(RELAY), "100000", sys.executable, str(SERVER), str(journal), "stubborn"]
    relay = subprocess.Popen(held, stdin=subprocess.PIPE, stdout=subprocess.DEVNULL)
    await until(lambda: "began" in journal.read_text(), 10.0)
    pid = json.loads(journal.read_text().splitlines()[0])["pid"]
    os.kill(relay.pid, 9)
    relay.wait(10)
    assert relay.stdin is not None
    relay.stdin.close()
    await until(lambda: not alive(pid), 10.0)

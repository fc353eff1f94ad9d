"""Tools under `holdfast serve`: what they say reaches a reader at once, and MCP servers neither hurt nor outlive it."""

import json
import os
import shutil
import signal
import time
from collections.abc import Iterator
from contextlib import closing, suppress
from pathlib import Path

import psutil
import pytest

from tests.system.support import System, frames, until

HERE = Path(__file__).parent
pytestmark = [pytest.mark.slow, pytest.mark.timeout(120)]


@pytest.fixture(scope="module")
def system(tmp_path_factory: pytest.TempPathFactory) -> Iterator[System]:
    directory = tmp_path_factory.mktemp("tools")
    shutil.copy(HERE / "agents_tools.py", directory)
    shutil.copy(HERE.parent / "agents" / "mcp_server.py", directory)
    with closing(System(directory, "agents_tools:smith", env={"HOLDFAST_SPARE": "false"})) as made:
        yield made
        made.close()
        until(lambda: not any(map(alive, servers(made))), "no MCP server outlives serve", 10)


def alive(pid: int) -> bool:
    with suppress(psutil.NoSuchProcess):
        return psutil.Process(pid).status() != psutil.STATUS_ZOMBIE
    return False


def notes(system: System, what: str) -> list[dict]:
    path = system.directory / "mcp.jsonl"
    lines = path.read_text().splitlines() if path.exists() else []
    return [note for note in map(json.loads, lines) if note["what"] == what]


def servers(system: System) -> list[int]:
    return [note["pid"] for note in notes(system, "began")]


def worker(system: System) -> psutil.Process:
    """The server's own child; the MCP server and its relay are the worker's."""
    (found,) = system.workers()
    return found


def test_what_a_tool_says_reaches_a_reader_while_the_tool_works(system: System) -> None:
    """F57 end to end: thread, channel, log, SSE; whole, in order, and before the tool is done."""
    run = system.run('!tool build {"lines": 500}\n!say done')
    said, finished = "", False
    with system.http.stream(f"/api/runs/{run}/events") as response:
        for _, kind, data in frames(response):
            event = json.loads(data)
            if kind == "tool.progress":
                said += event["text"]
                (system.directory / "heard").touch()
                assert not finished
            finished = finished or kind == "tool.finished"
    assert said == "".join(f"line {n}\n" for n in range(500)) + "the end\n"
    assert system.record(run)["output"] == "done"


def test_a_flood_of_an_mcp_server_is_not_the_workers(system: System) -> None:
    """Fifty megabytes in one answer, and a line without end: a failed call, and a worker as small as before."""
    system.end(system.run('!tool echo {"text": "warm"}\n!say warm'))
    before = worker(system).memory_info().rss
    run = system.run('!tool flood {}\n!say a\n!tool line {}\n!say b\n!tool echo {"text": "well"}\n!say done')
    assert system.end(run)["output"] == "done"
    results = {e["name"]: (e["outcome"], e["result"]) for e in system.events(run) if e["type"] == "tool.finished"}
    assert results["flood"][0] == results["line"][0] == "failed"
    assert results["echo"] == ("success", "well")
    assert worker(system).memory_info().rss - before < 60 * 1024 * 1024


def test_stop_ends_a_run_whose_mcp_server_ignores_it(system: System) -> None:
    """P2: within the grace, with the tool on the receipt; the next prompt works."""
    run = system.run("!tool jam {}\n!say never", session="jammed")
    until(lambda: any(note["tool"] == "jam" for note in notes(system, "called")), "the call has begun")
    began = time.monotonic()
    system.stop(run)
    record = system.end(run)
    assert time.monotonic() - began < 4.0
    assert (record["state"], record["reason"]) == ("cancelled", "stopped")
    assert [tool["name"] for tool in record["receipt"]["tools"]] == ["jam"]
    after = system.run('!tool echo {"text": "again"}\n!say well', session="jammed")
    assert system.end(after)["output"] == "well"
    assert [e["outcome"] for e in system.events(after) if e["type"] == "tool.finished"] == ["success"]


def test_a_worker_that_is_killed_in_a_call_leaves_no_server_and_an_unknown_outcome(system: System) -> None:
    """P9: the run goes on elsewhere; the call may have had its effect, which is what the model is told."""
    run = system.run("!tool hang {}\n!say went on")
    until(lambda: any(note["tool"] == "hang" for note in notes(system, "called")), "the call has begun")
    pid = servers(system)[-1]
    assert alive(pid)
    os.kill(worker(system).pid, signal.SIGKILL)
    record = system.end(run, 60)
    assert (record["state"], record["output"]) == ("completed", "went on")
    ends = [e["outcome"] for e in system.events(run) if e["type"] == "tool.finished"]
    assert ends == ["unknown"]
    until(lambda: not alive(pid), "the killed worker's MCP server is gone", 10)

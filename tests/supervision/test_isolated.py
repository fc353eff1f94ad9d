"""P2, P9 and P11 for tools in processes of their own: Stop, a time limit and kill -9 leave none of them alive."""

import signal
import time
from contextlib import suppress
from typing import Any

import psutil
import pytest

from tests.supervision.conftest import Serve
from tests.supervision.support import STOP_S, Follower, kill, kinds, tools_of, worker_pid
from tests.system.support import System, full, until

pytestmark = [pytest.mark.slow, pytest.mark.timeout(full(300, 120))]

GANG = "agents_isolated:gang"
GENERATIONS = 4
DEAD_S = 3.0


def pids(system: System, times: int = 1) -> list[int]:
    """Everybody whom the tool started, once all are there."""
    path = system.directory / "tool.pids"

    def found() -> list[int]:
        numbers = [int(line) for line in path.read_text().split()] if path.exists() else []
        return numbers if len(numbers) >= GENERATIONS * times else []

    return until(found, "all generations are there")


def alive(numbers: list[int]) -> list[int]:
    found = []
    for pid in numbers:
        with suppress(psutil.Error):
            if psutil.Process(pid).status() != psutil.STATUS_ZOMBIE:
                found.append(pid)
    return found


def outcomes(events: list[dict[str, Any]]) -> list[tuple[str, str]]:
    return [(e["name"], e["outcome"]) for e in events if e["type"] == "tool.finished"]


def test_stop_limit_and_deadline_kill_all_generations_and_say_so(serve: Serve, figures: Any):
    """One server through all three: the terminal event comes in time, and its receipt says what is so."""
    system = serve(GANG, HOLDFAST_SPARE="false")
    run = Follower(system, system.run("!tool generations {}", session="s"))
    first = pids(system)
    assert len(alive(first)) == GENERATIONS
    asked = time.monotonic()
    system.stop(run.run)
    end = run.end()[-1]
    took = run.at[-1] - asked
    until(lambda: not alive(first), "none lives", DEAD_S - (time.monotonic() - asked))
    assert (end["type"], end["reason"]) == ("run.cancelled", "stopped")
    assert tools_of(end) == [("generations", "killed")], end
    assert not end["receipt"]["abandoned"]
    assert took < STOP_S, f"{took:.2f} s"

    script = '!tool hurried {}\n!say once more\n!tool add {"a": 1, "b": 2}\n!say done'
    run = Follower(system, system.run(script, session="s"))
    second = pids(system, 2)[GENERATIONS:]
    events = run.end()
    assert outcomes(events) == [("hurried", "timeout"), ("add", "success")], events
    assert events[-1]["type"] == "run.completed"
    assert not alive(second)

    run = Follower(system, system.run("!tool generations {}", session="s", deadline_s=4))
    third = pids(system, 3)[GENERATIONS * 2 :]
    end = run.end()[-1]
    assert (end["type"], end["reason"]) == ("run.failed", "deadline")
    assert tools_of(end) == [("generations", "killed")], end
    assert not alive(third)
    figures("isolated tools", [f"stop to terminal event, three generations deaf to SIGTERM: {took:.2f} s"])


def test_a_command_is_killed_and_its_output_is_the_models(serve: Serve):
    """The commonest tool: a shell line, to its end and not."""
    system = serve(GANG, HOLDFAST_SPARE="false")
    events = Follower(system, system.run('!tool shell {"script": "echo out"}\n!say done', session="s")).end()
    assert [e["result"] for e in events if e["type"] == "tool.finished"] == ["0 out\n"]
    assert "".join(e["text"] for e in events if e["type"] == "tool.progress") == "out\n"
    path = system.directory / "tool.pids"
    script = f"trap '' TERM; echo $$ >> {path}; setsid sleep 60 & echo $! >> {path}; sleep 60"
    run = Follower(system, system.run(f'!tool shell {{"script": "{script}"}}', session="s"))
    numbers = until(lambda: path.exists() and len(path.read_text().split()) == 2 and path.read_text().split(), "begun")
    system.stop(run.run)
    end = run.end()[-1]
    assert tools_of(end) == [("shell", "killed")], end
    assert not alive([int(n) for n in numbers])


def test_kill_9_leaves_no_generation_alive(serve: Serve, figures: Any):
    """Of the worker, of the gateway, of both: nobody is left to say stop, and the tool ends all the same."""
    system = serve(GANG, HOLDFAST_SPARE="false")
    said = []
    for times, whom in enumerate(full(("worker", "gateway", "both"), ("worker", "gateway")), 1):
        run = Follower(system, system.run("!tool generations {}", session=whom))
        numbers = pids(system, times)[GENERATIONS * (times - 1) :]
        doomed = {"worker": [worker_pid(system)], "gateway": [system.server.pid]}
        doomed["both"] = [*doomed["worker"], *doomed["gateway"]]
        killed = time.monotonic()
        for number in (signal.SIGSTOP, signal.SIGKILL):  # none of two sees the other one die
            for pid in doomed[whom]:
                kill(pid, number)
        until(lambda n=numbers: not alive(n), "none lives", 15)
        took = time.monotonic() - killed
        if whom != "worker":
            system.server.wait(10)
            system.start()
        until(lambda r=run: kinds(r.events).count("run.started") == 2 or r.closed, "it goes on")
        system.stop(run.run)
        run.end()
        assert len(pids(system, times)) == GENERATIONS * times, "what was in flight is not run again"
        assert took < DEAD_S, f"{whom}: {took:.2f} s"
        said.append(f"kill -9 of {whom} to the last generation's end: {took:.2f} s")
    figures("isolated tools under kill -9", said)

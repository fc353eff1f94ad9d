"""Signals, orphans, replacements: what the gateway and its children owe each other."""

import os
import pty
import select
import signal
import subprocess
import sys
import time
from contextlib import suppress
from pathlib import Path
from typing import Any

import psutil
import pytest

from tests.environment import clean
from tests.supervision.conftest import Serve
from tests.supervision.support import (
    CREW,
    Follower,
    Pulse,
    attempts,
    began,
    children,
    gone,
    kill,
    settled,
    spare_pid,
    worker_pid,
)
from tests.system.support import FULL, TERMINAL, Process, System, full, until

pytestmark = [pytest.mark.slow, pytest.mark.timeout(120)]

ORPHANS_S = 2.5
EXIT_S = 12.0


def _load(system: System, n: int = 8) -> list[Follower]:
    """Runs that stream, sleep in tools and block threads."""
    scripts = ["!tokens n=5000 rate=50", '!tool nap {"seconds": 60}', '!tool block {"seconds": 5}\n!tokens n=9 rate=9']
    found = [Follower(system, system.run(scripts[i % 3], session=f"s{i}")) for i in range(n)]
    until(lambda: all("run.started" in b"".join(f.rows).decode() for f in found), "all have started")
    until(lambda: "t5 " in found[0].said(), "text is shown")
    return found


@pytest.mark.parametrize("number", full([signal.SIGTERM, signal.SIGINT], [signal.SIGTERM]), ids=lambda n: n.name)
def test_one_signal_drains_and_what_is_not_done_goes_on_with_the_next_server(serve: Serve, number: signal.Signals):
    """A deployment under load: exit 0, every reader has its end now or, with the same bytes before it, later."""
    system = serve(HOLDFAST_DRAIN_S="1")
    pids = list(settled(system))
    found = _load(system)
    asked = time.monotonic()
    system.server.signal(number)
    assert system.server.wait(EXIT_S) == 0, system.server.log()
    assert time.monotonic() - asked < EXIT_S
    gone(pids, 0.5)
    system.start()
    for follower in found:
        kept = len(follower.rows)
        until(lambda f=follower, n=kept: f.closed or len(f.rows) > n, "it goes on")
        if not follower.closed:
            system.stop(follower.run)
        events = follower.end(20)
        assert events[-1]["type"] in TERMINAL


@pytest.mark.chaos
def test_a_second_signal_ends_every_run_now_under_load(serve: Serve):
    """Ctrl-C twice: nobody waits for the drain, and each reader sees the end of its run."""
    system = serve()
    pids = list(settled(system))
    found = _load(system)
    asked = time.monotonic()
    system.server.signal(signal.SIGTERM)
    until(lambda: "shutdown" in system.server.log(), "the first is taken")
    system.server.signal(signal.SIGTERM)
    assert system.server.wait(EXIT_S) == 0
    took = time.monotonic() - asked
    assert took < 6.0, f"{took:.1f} s"
    gone(pids, 0.5)
    log = system.server.log()
    system.start()
    for follower in found:
        end = follower.end(20)[-1]
        assert (end["type"], end["reason"]) == ("run.cancelled", "shutdown"), (end, log[-2000:])


@pytest.mark.chaos
def test_a_second_signal_kills_a_worker_whose_loop_is_blocked(serve: Serve):
    """The exit is bounded and clean even then."""
    system = serve()
    pids = list(settled(system))
    follower = Follower(system, system.run("!tool regex {}", session="s"))
    began(system, "regex")
    system.server.signal(signal.SIGTERM)
    until(lambda: "shutdown" in system.server.log(), "the first is taken")
    system.server.signal(signal.SIGTERM)
    assert system.server.wait(EXIT_S) == 0, system.server.log()
    gone(pids, 0.5)
    system.start()
    end = follower.end(20)[-1]
    assert end["type"] in TERMINAL
    assert len(system.journal("regex")) == 1, "what blocked the loop is not run again"


def test_ctrl_c_in_a_terminal_reaches_the_whole_group_and_the_worker_leaves_it_to_the_gateway(serve: Serve):
    """The terminal sends SIGINT to every process of the group: the worker drains instead of dying in mid-answer."""
    system = serve()
    system.server.end()
    master, slave = pty.openpty()
    command = [sys.executable, "-m", "holdfast", *system.command(system.http.port)]
    code = (
        "import fcntl, os, sys, termios\n"
        "os.setsid()\n"
        "fcntl.ioctl(0, termios.TIOCSCTTY, 0)\n"
        "os.execv(sys.argv[1], sys.argv[1:])\n"
    )
    env = clean() | {"OPENAI_API_KEY": "none"}
    shell = subprocess.Popen(
        [sys.executable, "-c", code, *command], stdin=slave, stdout=slave, stderr=slave, cwd=system.directory, env=env
    )
    os.close(slave)
    said = bytearray()

    def listen() -> bytes:
        while select.select([master], [], [], 0)[0]:
            try:
                data = os.read(master, 65536)
            except OSError:
                break
            if not data:
                break
            said.extend(data)
        return bytes(said)

    try:
        until(lambda: b"ready at=" in listen(), "it is ready", 40)
        run = system.run("!tokens n=60 rate=40", session="s")
        follower = Follower(system, run)
        until(lambda: "t5 " in follower.said(), "text is shown")
        os.write(master, b"\x03")
        until(lambda: (listen(), shell.poll())[1] is not None, "it ends", EXIT_S)
        assert shell.returncode == 0, listen().decode(errors="replace")
        assert b"Traceback" not in listen(), listen().decode(errors="replace")
        assert b"KeyboardInterrupt" not in listen()
        events = follower.events
        assert events[-1]["type"] == "run.completed", "it was drained, not cut off"
        assert attempts(events) == [1]
        follower.end(5)
    finally:
        with suppress(ProcessLookupError):
            shell.kill()
        shell.wait(10)
        os.close(master)


@pytest.mark.parametrize("busy", full(["idle", "load", "hog", "regex", "nap_in_c", "stopped"], ["load", "nap_in_c"]))
def test_kill_9_of_the_gateway_leaves_no_process_and_the_next_server_starts_at_once(
    serve: Serve, figures: Any, busy: str
):
    """No worker may live on unsupervised, whatever it does, and nobody has to clean up before a restart."""
    system = serve()
    pids = [p.pid for p in children(system.server)] if settled(system) else []
    assert len(pids) == 3, "worker, spare and guard"
    if busy == "load":
        _load(system)
    elif busy == "stopped":
        kill(worker_pid(system), signal.SIGSTOP)
    elif busy != "idle":
        system.run(f"!tool {busy} {{}}" if busy == "regex" else f'!tool {busy} {{"seconds": 30}}')
        began(system, busy)
    system.server.signal(signal.SIGKILL)
    died = time.monotonic()
    system.server.wait(5)
    restarted = time.monotonic()
    system.start()  # at once: it waits for the lock itself
    restart_s = time.monotonic() - restarted
    gone(pids, max(0.0, ORPHANS_S - (time.monotonic() - died)) + 0.2)
    figures(f"kill -9 of the gateway, {busy}", [f"the next server was ready {restart_s:.2f} s later"])
    system.prompt_works("after")


@pytest.mark.chaos
def test_a_second_server_says_who_holds_the_file_while_a_worker_is_replaced(serve: Serve):
    """The lock is the gateway's and the worker's: no moment between two workers lets a stranger in."""
    system = serve()
    settled(system)
    kill(worker_pid(system))
    second = Process("second", system.command(0), system.directory)
    try:
        assert second.wait(20) == 1
        assert f"served by process {system.server.pid}" in second.log()
        assert "Traceback" not in second.log()
    finally:
        second.end()
    system.prompt_works("s")


@pytest.mark.parametrize("tool", ["litter", "fork"])
@pytest.mark.parametrize("where", [[CREW], [CREW, "--in-process"]], ids=["worker", "in one process"])
def test_what_a_tool_leaves_behind_holds_neither_the_lock_nor_a_pipe(serve: Serve, tool: str, where: list[str]):
    """`os.system("server &")` and multiprocessing: a child must keep neither database nor port from the next server."""
    system = serve(*where)
    if where == [CREW]:
        settled(system)
    assert system.end(system.run(f"!tool {tool} {{}}\n!say done"))["output"] == "done"
    pid = int((system.directory / "litter.pids").read_text().split()[-1])
    try:
        mine = {Path(f"/proc/{pid}/fd/{fd}").resolve().name for fd in os.listdir(f"/proc/{pid}/fd")}
        assert "holdfast.db.lock" not in mine, mine
        assert tool == "fork" or not [name for name in mine if "holdfast-blame" in name], mine  # memory, copied with it
        server = system.server
        server.signal(signal.SIGKILL)
        server.wait(5)
        system.start()
        system.prompt_works("s")
    finally:
        kill(pid)


@pytest.mark.parametrize("where", [[CREW], [CREW, "--in-process"]], ids=["worker", "in one process"])
def test_a_thread_or_a_process_that_a_tool_left_keeps_no_server_from_ending(serve: Serve, where: list[str]):
    """The interpreter waits for both without a limit; a service manager then kills what had been drained."""
    system = serve(*where)
    assert system.end(system.run("!tool linger {}\n!tool fork {}\n!say done"))["output"] == "done"
    try:
        system.server.signal(signal.SIGTERM)
        assert system.server.wait(15) == 0
    finally:
        kill(int((system.directory / "litter.pids").read_text().split()[-1]))


def test_a_process_that_a_tool_starts_obeys_its_signals(serve: Serve):
    """What the worker ignores is not for its children to ignore: an MCP server is ended by terminate()."""
    system = serve()
    run = system.run("!tool terminate {}\n!say done")
    assert system.end(run)["output"] == "done"
    [finished] = [e for e in system.seen(run) if e["type"] == "tool.finished"]
    assert "ended by 15" in str(finished["result"]), finished


@pytest.mark.chaos
@pytest.mark.timeout(full(590, 90))
def test_many_replacements_leave_no_descriptor_no_zombie_and_no_memory_map_behind(serve: Serve, figures: Any):
    """A server that runs for a year replaces many workers."""
    system = serve(HOLDFAST_SPARE="false")
    gateway = psutil.Process(system.server.pid)
    system.prompt_works("s")

    def held() -> tuple[int, int]:
        fds = len(os.listdir(f"/proc/{gateway.pid}/fd"))
        maps = Path(f"/proc/{gateway.pid}/maps").read_text().count("holdfast-blame")
        return fds, maps

    baseline = min(held() for _ in range(5))
    times = full(30, 3)
    for i in range(times):
        before = worker_pid(system)
        kill(before)
        until(lambda b=before: worker_pid(system) != b, f"replacement {i + 1}", 30)
    until(lambda: len(children(system.server)) == 2, "no zombie is left, only the worker and the guard")
    until(lambda: held()[0] <= baseline[0] + 2, f"descriptors return to {baseline[0]}: {held()}", 10)
    assert held()[1] == baseline[1] == 1, "one board for one worker"
    figures("replacements", [f"{times}: descriptors {baseline[0]} -> {held()[0]}, boards {held()[1]}"])


def test_a_spare_that_dies_is_replaced(serve: Serve):
    """Else the next replacement takes seconds instead of half of one, and nobody knows."""
    system = serve()
    worker, spare = settled(system)
    kill(spare)
    until(lambda: spare_pid(system) not in (None, spare), "another spare", 20)
    assert settled(system)[0] == worker


def test_a_guard_that_dies_is_replaced_and_still_knows_whom_to_kill(serve: Serve):
    """The one process that nobody watches would be the one that fails."""
    system = serve(HOLDFAST_SPARE="false")
    worker = worker_pid(system)
    guard = next(p.pid for p in children(system.server) if p.pid != worker)
    kill(guard)
    until(lambda: {p.pid for p in children(system.server)} - {worker, guard}, "another guard")
    system.run('!tool nap_in_c {"seconds": 30}')
    began(system, "nap_in_c")
    pids = [p.pid for p in children(system.server)]
    system.server.signal(signal.SIGKILL)
    gone(pids, ORPHANS_S)


@pytest.mark.chaos
def test_a_gateway_that_was_stopped_for_a_while_does_not_kill_its_worker(serve: Serve):
    """Ctrl-Z and fg, or a laptop's lid: the beats of that time wait in the pipe."""
    system = serve()
    worker, _ = settled(system)
    follower = Follower(system, system.run('!tool nap {"seconds": 7}\n!say rested', session="s"))
    began(system, "nap")
    system.server.signal(signal.SIGSTOP)
    time.sleep(6.5)  # longer than loop_stall_s
    system.server.signal(signal.SIGCONT)
    events = follower.end(20)
    assert attempts(events) == [1]
    assert events[-1]["output"] == "rested"
    assert worker_pid(system) == worker


@pytest.mark.chaos
def test_a_worker_that_dies_at_every_start_makes_the_server_unready_and_says_why(serve: Serve):
    """The agents' module was broken by a deployment: a loop of restarts helps nobody, and the gateway answers."""
    system = serve(HOLDFAST_QUEUE_TIMEOUT_S="120")  # what was running waits for the repair
    worker, spare = settled(system)
    follower = Follower(system, system.run("!tokens n=5000 rate=50", session="s"))
    until(lambda: "t5 " in follower.said(), "it streams")
    (system.directory / "broken").touch()
    pulse = Pulse(system.http)
    kill(worker)
    kill(spare)

    def why() -> str:
        status, body = system.http.ask("GET", "/readyz")
        return body["parts"]["worker"].get("why", "") if status == 503 else ""

    until(lambda: "more than 3 times in 60 s" in why(), "not ready, and why", 30)
    status, problem = system.http.ask("POST", "/api/runs", {"input": "hello"})
    assert status in (201, 503), problem
    assert pulse.worst() < 1.0
    if not FULL:
        return
    (system.directory / "broken").unlink()
    until(lambda: system.http.ask("GET", "/readyz")[0] == 200, "it mends itself", 40)
    until(lambda: attempts(follower.events)[1:] and follower.events[-1]["type"] == "text.delta", "the run goes on")
    system.stop(follower.run)
    follower.end()


@pytest.mark.chaos
def test_a_run_that_kills_its_worker_on_each_attempt_ends_as_worker_lost(serve: Serve):
    """A poisoned prompt cannot hold the server for ever: its attempts are counted, and it is said."""
    system = serve()
    settled(system)
    follower = Follower(system, system.run("!tokens n=5000 rate=50", session="s"))
    for attempt in (1, 2, 3):
        until(lambda n=attempt: attempts(follower.events)[-1:] == [n], f"attempt {attempt}")
        until(lambda: follower.events[-1]["type"] == "text.delta", "it streams")
        kill(worker_pid(system))
    end = follower.end(60)[-1]
    assert (end["type"], end["reason"], end["error"]["code"]) == ("run.failed", "worker_lost", "worker_lost")
    assert attempts(follower.events) == [1, 2, 3]
    system.prompt_works("s")


def test_inspect_and_workers_tell_across_processes(serve: Serve):
    """Why is it not finished: the tool that it waits on, or the run that blocks everybody."""
    system = serve()
    settled(system)
    run = system.run('!tool nap {"seconds": 30}', session="s")
    began(system, "nap")
    found = system.inspect(run)
    assert "nap" in str(found), found
    [worker] = [w for w in system.http.get("/api/workers")["workers"] if str(worker_pid(system)) in str(w)]
    assert "runs" in str(worker)
    blocker = system.run('!tool hog {"seconds": 30}', session="h")
    began(system, "hog")
    time.sleep(0.6)
    asked = time.monotonic()
    found = system.inspect(run)
    assert time.monotonic() - asked < 1.5
    assert "blocked" in str(found["waiting_on"]), found
    assert found["blocked_by"] == blocker
    assert found["since_ms"] >= 300
    system.stop(blocker)
    assert system.end(blocker)["reason"] == "stopped"

"""A tool in a process of its own: what goes in and comes out, and that nothing of it outlives its end."""

import asyncio
import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

import anyio
import psutil
import pytest

from holdfast.config import Settings
from holdfast.ports.probe import Probe, enter
from holdfast.tools import (
    CurrentCall,
    ProcessLimits,
    Reporter,
    ToolDied,
    ToolQueueTimeout,
    ToolRaised,
    enter_limits,
    in_call,
    isolated,
    reporting,
)
from tests.tools import in_processes as tools

pytestmark = pytest.mark.timeout(60)

ROOT = Path(__file__).resolve().parents[2]
STEP_S = 15.0  # for whatever must happen at last on a busy machine
DEAD_S = 3.0  # after Stop


def alive(pids: list[int]) -> list[int]:
    found = []
    for pid in pids:
        with suppress(psutil.NoSuchProcess):
            if psutil.Process(pid).status() != psutil.STATUS_ZOMBIE:
                found.append(pid)
    return found


def noted(journal: Path) -> list[int]:
    return [int(line) for line in journal.read_text().split()] if journal.exists() else []


async def until(holds, what: str, limit_s: float = STEP_S) -> float:
    """How long it took."""
    began = time.monotonic()
    while not holds():
        assert time.monotonic() - began < limit_s, f"not within {limit_s} s: {what}"
        await asyncio.sleep(0.005)
    return time.monotonic() - began


async def cancelled(task: asyncio.Task) -> float:
    """Cancel it; how long it took to end."""
    began = time.monotonic()
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        async with asyncio.timeout(STEP_S):
            await task
    return time.monotonic() - began


@contextmanager
def shown() -> Iterator[list[str]]:
    """What the readers of a run are shown of a call."""
    told: list[str] = []
    reporter = Reporter("c", 1_000_000, lambda event: told.append(event.text) is None)
    with in_call(CurrentCall("r", "c", 1)), reporting(reporter):
        yield told
    if (rest := reporter.close()) is not None:
        told.append(rest.text)


async def test_arguments_and_results_travel_as_json() -> None:
    """Called like any coroutine function, from sync and async code alike."""
    assert await tools.add(1, b=2) == 3
    assert await tools.add_soon(1, 2) == 3
    value = {"a": [1, 2.5, None, True], "b": "ü\n" * 10_000}
    assert await tools.echo(value) == value


async def test_a_tool_knows_its_call_and_is_nobodys_thread() -> None:
    """The idempotency key is found in the other process, too."""
    with in_call(CurrentCall("r", "c", 2)):
        key, pid, parent = await tools.whoami()
    assert key == "r/c"
    assert os.getpid() not in (pid, parent)


async def test_an_exception_comes_back_with_type_message_and_trace() -> None:
    """The model reads what went wrong, not that a process ended; what is no JSON is such a failure, too."""
    with pytest.raises(ToolRaised, match="of no use") as raised:
        await tools.raises()
    assert type(raised.value).__name__ == "Broken"
    assert raised.value.kind == "tests.tools.in_processes.Broken"
    assert 'raise Broken("of no use")' in raised.value.trace
    with pytest.raises(ToolRaised, match=r"called exit\(3\)"):
        await tools.leaves()
    with pytest.raises(ToolRaised, match="no JSON"):
        await tools.no_json()
    with pytest.raises(ToolRaised, match="at most 1048576 come back"):
        await tools.huge()
    with pytest.raises(TypeError, match="are no JSON"):
        await tools.echo({1, 2})
    with pytest.raises(ValueError, match="write them to a file"):
        await tools.echo("x" * 2_000_000)


async def test_a_process_that_dies_says_how_and_its_last_words() -> None:
    """A crash in C is a failure of one call, with a cause."""
    with pytest.raises(ToolDied, match=r"SIGABRT.*it was the pump") as died:
        await tools.aborts()
    assert died.value.code == -signal.SIGABRT


def test_only_what_another_process_can_find_is_taken() -> None:
    """Said when the module is imported, not at the first call."""

    def local() -> None:
        pass

    with pytest.raises(TypeError, match="top level"):
        isolated(local)
    with pytest.raises(TypeError, match="takes a function"):
        isolated(len)


async def test_output_is_shown_while_it_comes_and_is_bounded() -> None:
    """A reader sees progress, and a flood ends in a mark, not in memory."""
    with shown() as told:
        assert await tools.says(3) == 3
    assert "".join(told) == "xxxxxxxxx\n" * 3
    with shown() as told:
        assert await tools.says(20_000) == 20_000
    text = "".join(told)
    assert text.endswith("[truncated: the tool writes more than is shown]\n")
    assert len(text) < 65_536 + 100
    with shown() as told:
        await tools.reports("one ", "two")
    assert "".join(told) == "one two"


async def test_three_generations_are_dead_soon_after_a_stop(tmp_path: Path) -> None:
    """Children, what left the group or the session, and what was forked twice; all of them deaf to SIGTERM."""
    probe, journal = Probe(), tmp_path / "pids"
    enter(probe)
    with in_call(CurrentCall("r", "c", 1)):
        task = asyncio.ensure_future(tools.generations(str(journal)))
    await until(lambda: len(noted(journal)) == 4, "all have started")
    assert len(alive(noted(journal))) == 4
    assert probe.processes_running() == {"c"}
    took = await cancelled(task)
    assert not alive(noted(journal))
    assert took < DEAD_S
    assert (probe.processes_running(), probe.processes_killed()) == (set(), {"c"})


async def test_a_tool_that_listens_ends_at_once_and_can_clean_up(tmp_path: Path) -> None:
    """SIGTERM comes first, once."""
    journal = tmp_path / "pids"
    task = asyncio.ensure_future(tools.cleans_up(str(journal)))
    await until(lambda: noted(journal), "it has started")
    await cancelled(task)
    pids = noted(journal)
    assert pids == [pids[0]] * 2
    assert not alive(pids)


async def test_a_frozen_tool_is_ended_like_others(tmp_path: Path) -> None:
    """SIGSTOP is no way to outlive a stop."""
    journal = tmp_path / "pids"
    task = asyncio.ensure_future(tools.stops_itself(str(journal)))
    await until(lambda: noted(journal), "it has started")
    await cancelled(task)
    assert not alive(noted(journal))


async def test_what_a_tool_leaves_behind_ends_with_it(tmp_path: Path) -> None:
    """A result is not held up by a daemon that has the tool's output open, and the daemon does not stay."""
    journal = tmp_path / "pids"
    assert await tools.leaves_a_daemon(str(journal)) == "done"
    await until(lambda: not alive(noted(journal)), "the daemon is gone")


async def test_a_call_that_timed_out_does_not_harm_the_next(tmp_path: Path) -> None:
    """The time limit ends the process, not the tool."""
    journal = tmp_path / "pids"
    with pytest.raises(TimeoutError):
        async with asyncio.timeout(0.5):
            await tools.generations(str(journal))
    assert not alive(noted(journal))
    assert await tools.add(1, 2) == 3


async def test_one_that_is_cancelled_again_and_again_ends_when_its_processes_have(tmp_path: Path) -> None:
    """pydantic-ai's limit of a tool cancels at every turn of the loop, and ours on top of it: the call waits."""
    journal = tmp_path / "pids"

    async def limited() -> None:
        with anyio.fail_after(1.5):
            await tools.generations(str(journal))

    task = asyncio.ensure_future(limited())
    await until(lambda: len(noted(journal)) == 4, "all have started")
    used = time.process_time()
    for late_s in (1.6, 1.8, 2.0):
        asyncio.get_running_loop().call_later(late_s, task.cancel)
    async with asyncio.timeout(STEP_S):
        await asyncio.wait([task])
    assert not alive(noted(journal))
    assert time.process_time() - used < 1.0, "it spun instead of waiting"
    with pytest.raises((TimeoutError, asyncio.CancelledError)):
        task.result()


async def test_a_tool_has_no_descriptor_of_the_worker() -> None:
    """A lock, a database or a pipe of the worker's must not stay open in what a tool starts."""
    with open(os.devnull, "rb") as file:
        os.set_inheritable(file.fileno(), True)
        found = await tools.descriptors()
    names = [line.split()[1] for line in found]
    assert names.count("/dev/null") == 1, found  # its standard input
    assert all(name.startswith(("pipe:", "/dev/null")) for name in names), found
    assert len(found) <= 5, found  # and output, errors, the answer


async def test_processes_of_tools_are_bounded_and_nobody_waits_for_ever(tmp_path: Path) -> None:
    """Past the bound a call waits for its turn, and is refused after the queue's time."""
    settings = Settings(tool_processes=1, tool_queue_s=0.2)
    limits = ProcessLimits(settings)
    enter_limits(limits)
    journal = tmp_path / "pids"
    task = asyncio.ensure_future(tools.generations(str(journal)))
    await until(lambda: limits.running == 1, "it has a place")
    with pytest.raises(ToolQueueTimeout, match="was not started"):
        await tools.add(1, 2)
    waiting = asyncio.ensure_future(tools.add(1, 2))
    await until(lambda: limits.queued == 1, "it waits")
    await cancelled(waiting)
    await cancelled(task)
    assert (limits.running, limits.queued) == (0, 0)
    limits = ProcessLimits(Settings(tool_processes=2))
    enter_limits(limits)
    async with asyncio.timeout(STEP_S):
        assert await asyncio.gather(*(tools.add(i, i) for i in range(5))) == [0, 2, 4, 6, 8]
    await until(lambda: limits.running == 0, "all places are free")


async def test_the_death_of_the_shim_takes_the_tool_with_it(tmp_path: Path) -> None:
    """Whoever kills the shim does not free its tool."""
    journal = tmp_path / "pids"
    task = asyncio.ensure_future(tools.cleans_up(str(journal)))
    await until(lambda: noted(journal), "it has started")
    [tool] = noted(journal)
    psutil.Process(tool).parent().kill()
    with pytest.raises(ToolDied, match="killed with its shim"):
        async with asyncio.timeout(STEP_S):
            await task
    await until(lambda: not alive([tool]), "the tool is gone")


def test_a_tools_process_imports_no_more_of_holdfast_than_the_decorator() -> None:
    """Each call pays for it: a loop that a sync tool does not need is most of the start."""
    heavy = ("asyncio", "importlib.metadata", "msgspec", "pydantic", "pydantic_ai", "subprocess")
    code = f"import sys; from holdfast.tools import isolated; print([m for m in {heavy} if m in sys.modules])"
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, timeout=STEP_S, check=True)
    assert done.stdout == b"[]\n"


SCRIPT = """
import asyncio
from holdfast.tools import isolated

@isolated
def twice(n: int) -> int:
    return 2 * n

if __name__ == "__main__":
    print(asyncio.run(twice(21)))
"""


def test_a_tool_in_a_script_is_found_there(tmp_path: Path) -> None:
    """People try it in one file first; what stands under `__name__` is not run again."""
    (tmp_path / "script.py").write_text(SCRIPT)
    done = subprocess.run(
        [sys.executable, "-W", "error", "script.py"], cwd=tmp_path, capture_output=True, timeout=STEP_S, check=False
    )
    assert (done.stdout, done.stderr) == (b"42\n", b"")


CALLER = """
import asyncio, os, sys
from tests.tools import in_processes

if sys.argv[2] == "leak":  # a child of ours that has our pipes, as a fork without exec has them
    os.register_at_fork(after_in_child=lambda: None)

async def main():
    call = asyncio.ensure_future(in_processes.generations(sys.argv[1]))
    while not os.path.exists(sys.argv[1]):
        await asyncio.sleep(0.01)
    if sys.argv[2] == "leak" and os.fork() == 0:
        import time
        time.sleep(20)
        os._exit(0)
    await call

asyncio.run(main())
"""


@pytest.mark.parametrize("how", ["plain", "leak"])
async def test_kill_9_of_the_worker_ends_its_tools(tmp_path: Path, how: str) -> None:
    """No thread, no handler and no signal of the worker is needed; not even the last copy of its pipe."""
    journal = tmp_path / "pids"
    caller = subprocess.Popen([sys.executable, "-c", CALLER, str(journal), how], cwd=ROOT, start_new_session=True)
    try:
        await until(lambda: len(noted(journal)) == 4, "all have started")
        caller.kill()
        caller.wait(STEP_S)
        took = await until(lambda: not alive(noted(journal)), "all are gone")
        assert took < DEAD_S
    finally:
        with suppress(ProcessLookupError):
            os.killpg(caller.pid, signal.SIGKILL)
        caller.wait(STEP_S)

"""A bounded pool whose threads nobody can take for ever."""

import asyncio
import contextvars
import subprocess
import sys
import threading

import pytest

from holdfast.ports.probe import Probe, enter
from holdfast.tools import CurrentCall, ToolPool, ToolQueueTimeout, current_call, in_call

LIMIT_S = 5.0


async def inside(pool: ToolPool, work, *args):
    async with asyncio.timeout(LIMIT_S):
        return await asyncio.get_running_loop().run_in_executor(pool, work, *args)


async def until(condition) -> None:
    async with asyncio.timeout(LIMIT_S):
        while not condition():
            await asyncio.sleep(0.002)


async def abandon(pool: ToolPool, let_go: threading.Event) -> None:
    """Begin a call that blocks, then give up on it."""
    started = threading.Event()

    def block() -> None:
        started.set()
        let_go.wait(LIMIT_S)

    task = asyncio.ensure_future(inside(pool, block))
    await until(started.is_set)
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task


async def test_values_and_exceptions_come_back() -> None:
    """As with any executor."""
    pool = ToolPool(2, 1.0)
    assert await inside(pool, lambda a: a + 1, 1) == 2
    with pytest.raises(ZeroDivisionError):
        await inside(pool, lambda: 1 / 0)
    assert pool.close(1.0) == 0


async def test_context_variables_and_the_call_are_there() -> None:
    """A tool in a thread finds its idempotency key as one on the loop does."""
    pool = ToolPool(1, 1.0)
    mark = contextvars.ContextVar("mark", default="")
    mark.set("here")
    with in_call(CurrentCall("r", "c", 2)):
        assert await inside(pool, lambda: (mark.get(), current_call())) == ("here", CurrentCall("r", "c", 2))
    assert current_call() is None
    pool.close(1.0)


async def test_the_probe_sees_the_thread_of_a_call() -> None:
    """What a receipt says of an abandoned tool is read here."""
    pool, probe, let_go = ToolPool(1, 1.0), Probe(), threading.Event()
    enter(probe)
    with in_call(CurrentCall("r", "c", 1)):
        task = asyncio.ensure_future(inside(pool, let_go.wait, LIMIT_S))
    await until(lambda: probe.threads_running() == {"c"})
    let_go.set()
    await task
    assert probe.threads_running() == set()
    pool.close(1.0)


async def test_threads_are_bounded_and_work_waits_its_turn() -> None:
    """A hundred calls, three threads, every result."""
    pool = ToolPool(3, 5.0)
    assert await asyncio.gather(*(inside(pool, lambda n=n: n) for n in range(100))) == list(range(100))
    assert pool.threads <= 3
    pool.close(1.0)


async def test_a_call_that_gets_no_thread_in_time_is_refused_and_never_starts() -> None:
    """Waiting for ever in a queue is hanging, too."""
    pool, let_go, ran = ToolPool(1, 0.05), threading.Event(), []
    busy = asyncio.ensure_future(inside(pool, let_go.wait, LIMIT_S))
    await until(lambda: pool.threads == 1 and pool.queued == 0)
    with pytest.raises(ToolQueueTimeout, match="1 busy"):
        await inside(pool, ran.append, 1)
    let_go.set()
    await busy
    assert await inside(pool, lambda: 2) == 2
    assert ran == []
    pool.close(1.0)


async def test_an_abandoned_thread_is_quarantined_and_replaced() -> None:
    """One run's stuck tool must not keep another run's tool from starting."""
    pool, let_go = ToolPool(1, 0.5, quarantine=2), threading.Event()
    await abandon(pool, let_go)
    assert (pool.quarantined, pool.exhausted, pool.tired()) == (1, False, "")
    assert await inside(pool, lambda: "starts") == "starts"
    await abandon(pool, let_go)
    assert (pool.quarantined, pool.exhausted) == (2, True)
    assert pool.tired() == "2 tool threads are held by calls that were given up on (quarantine 2)"
    let_go.set()
    await until(lambda: pool.quarantined == 0)
    assert (pool.exhausted, pool.tired()) == (False, "")
    assert await inside(pool, lambda: "again") == "again"
    pool.close(1.0)


async def test_sixty_cancelled_calls_leave_a_bounded_number_of_threads() -> None:
    """The leak of the library's default: 60 cancelled runs left 66 threads."""
    pool, let_go = ToolPool(4, 0.05, quarantine=3), threading.Event()
    before = threading.active_count()
    for _ in range(60):
        task = asyncio.ensure_future(inside(pool, let_go.wait, LIMIT_S))
        await asyncio.sleep(0)
        await asyncio.sleep(0.002)
        task.cancel()
        with pytest.raises((asyncio.CancelledError, ToolQueueTimeout)):
            await task
    assert pool.threads <= 4 + 3
    assert threading.active_count() - before <= 4 + 3
    assert pool.queued == 0
    assert pool.exhausted
    let_go.set()
    await until(lambda: pool.quarantined == 0)
    assert pool.close(1.0) == 0


async def test_a_call_cancelled_while_it_waits_never_starts() -> None:
    """And it is not quarantined: no thread has it."""
    pool, let_go, ran = ToolPool(1, 1.0), threading.Event(), []
    busy = asyncio.ensure_future(inside(pool, let_go.wait, LIMIT_S))
    await until(lambda: pool.threads == 1 and pool.queued == 0)
    waiting = asyncio.ensure_future(inside(pool, ran.append, 1))
    await until(lambda: pool.queued == 1)
    waiting.cancel()
    with pytest.raises(asyncio.CancelledError):
        await waiting
    assert (pool.queued, pool.quarantined) == (0, 0)
    let_go.set()
    await busy
    assert await inside(pool, lambda: ran) == []
    pool.close(1.0)


async def test_exit_in_a_tool_is_an_error_of_its_caller() -> None:
    """A SystemExit as a future's exception would end the event loop."""
    pool = ToolPool(1, 1.0)
    with pytest.raises(RuntimeError, match=r"exit\(3\)"):
        await inside(pool, sys.exit, 3)
    assert await inside(pool, lambda: "alive") == "alive"
    pool.close(1.0)


async def test_close_is_bounded_and_counts_what_is_left() -> None:
    """A stuck tool cannot hold up a drain."""
    pool, let_go = ToolPool(1, 1.0), threading.Event()
    await abandon(pool, let_go)
    assert pool.close(0.05) == 1
    with pytest.raises(RuntimeError, match="closed"):
        pool.submit(print)
    let_go.set()
    await until(lambda: pool.threads == 0)


@pytest.mark.slow
def test_a_stuck_thread_cannot_keep_the_process_alive() -> None:
    """The interpreter waits for the threads of concurrent.futures at exit; not for ours."""
    code = "import time; from holdfast.tools import ToolPool; ToolPool(1, 1.0).submit(time.sleep, 60); print('out')"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=8, check=True)
    assert done.stdout == "out\n"

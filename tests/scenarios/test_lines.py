"""The lines of a run that somebody else ended: complete, once, and strictly before its successor starts."""

import os
import signal
from pathlib import Path

import pytest
from msgspec.structs import replace

from holdfast.domain.runs import Policy
from holdfast.ports.agent import Result, TextDelta
from holdfast.stores.sqlite import SqliteStore
from holdfast.testing.build import CALM, new_run
from tests.engine.rig import FunctionAgent, Rig
from tests.scenarios.conftest import Serve
from tests.scenarios.support import CLEANLY, TIMED_OUT, Chat, check_strict, lines, parse, told, words
from tests.system.support import System, full, until


async def _hello(ctx):
    yield TextDelta(1, "hello")
    yield Result("hello")


@pytest.mark.parametrize("who", ["bury", "reap"])
async def test_whoever_ended_a_run_may_freeze_before_it_says_so(tmp_path: Path, who: str):
    """The order must not depend on who writes faster: here the ender never writes at all."""
    url = f"sqlite:///{tmp_path / 'holdfast.db'}"
    store = await SqliteStore.open(url)
    first, second = new_run(), replace(new_run(policy=Policy.SUPERSEDE), limits=CALM)
    first = replace(first, spec=replace(first.spec, agent="test", trace="1"))
    second = replace(second, spec=replace(second.spec, agent="test", trace="2"))
    await store.create(first)
    await store.claim("dead", 1, 10_000)
    await store.create(second)
    (ended,) = await (store.bury("dead") if who == "bury" else store.reap(10, 0))
    assert (ended.outcome, ended.ends) == ("cancelled", [])
    async with Rig(FunctionAgent(_hello), url=url) as rig:
        assert (await rig.end(second.key)).output == "hello"
        found = parse(rig.lines.getvalue())
    await store.close()
    assert words(found, first.key.run) == ["stream_cancelled", TIMED_OUT, "stream_end", "cleanup_done"]
    check_strict(found, first.key.run, second.key.run, TIMED_OUT)


@pytest.mark.slow
@pytest.mark.timeout(120)
def test_a_killed_worker_leaves_no_line_out(serve: Serve):
    """kill -9 while A ignores its stop for B: the supervisor takes A over, B starts elsewhere, the order is strict."""
    system = serve()
    for number in range(full(10, 2)):
        session = f"s{number}"
        first = Chat(system, '!tool deaf {"seconds": 20}', session)
        until(lambda n=number: len(system.journal("deaf")) > n, "the tool has begun")
        second = Chat(system, "!say four", session)
        run = first.named()
        until(lambda run=run: system.record(run)["stopping"], "the first is told to stop")
        os.kill(int(system.record(run)["worker"][1:].split("-")[0]), signal.SIGKILL)
        assert second.end().text.strip() == "four"
        first.end()
        found = told(system, first.run, second.run)
        check_strict(found, first.run, second.run, TIMED_OUT)


@pytest.mark.slow
@pytest.mark.timeout(60)
def test_runs_that_never_started_are_told_in_full(system: System):
    """Stopped, superseded or forgotten in the queue: each has its lines, with who did it."""
    active = system.run("!tokens n=100000 rate=50", session="q")
    waiting = [system.run("!say never", session="q", on_busy="enqueue") for _ in range(2)]
    system.stop(waiting[0])
    assert words(told(system, waiting[0]), waiting[0]) == [
        "stream_requested",
        "stream_cancelled",
        "stream_end",
        "cleanup_done",
    ]
    last = system.run("!say last", session="q")
    system.end(last)
    found = told(system, active, *waiting, last)
    check_strict(found, waiting[1], last, CLEANLY)
    check_strict(found, active, last, CLEANLY)
    busy = system.run("!tokens n=100000 rate=50", session="gone")
    behind = system.run("!say never", session="gone", on_busy="enqueue")
    assert system.http.ask("DELETE", "/api/sessions/gone")[0] in (200, 204)
    found = told(system, busy, behind)
    for run in (waiting[0], busy, behind):
        (cancelled,) = (line for line in found if (line["run"], line["event"]) == (run, "stream_cancelled"))
        assert (cancelled["reason"], cancelled["by"]) == ("stopped", "client")
    assert len([line for line in lines(system) if line["event"] == "stream_end" and line["run"] == behind]) == 1

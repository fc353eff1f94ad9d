"""One file, several processes: what is acknowledged survives kill -9, and nobody waits for the dead."""

import asyncio
import random
import sqlite3
import sys
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

import pytest

from holdfast.domain.ids import RunKey
from holdfast.domain.runs import Policy, State
from holdfast.ports.store import Status
from holdfast.stores.sqlite import SqliteStore
from holdfast.testing.build import text
from holdfast.testing.rig import Rig
from tests.stores.process import no_advance
from tests.stores.sqlite_harness import SqliteHarness

ROOT = Path(__file__).parents[2]
LINE_S = 8.0
FROZEN = (
    "import sqlite3, sys, time; c = sqlite3.connect(sys.argv[1], isolation_level=None); "
    "c.execute('BEGIN IMMEDIATE'); c.execute(\"INSERT INTO meta VALUES ('frozen', 1)\"); "
    "print('frozen', flush=True); time.sleep(60)"
)

pytestmark = [pytest.mark.slow, pytest.mark.timeout(30)]


@asynccontextmanager
async def process(*arguments: object) -> AsyncIterator[asyncio.subprocess.Process]:
    child = await asyncio.create_subprocess_exec(
        sys.executable,
        *map(str, arguments),
        cwd=ROOT,
        stdin=asyncio.subprocess.PIPE,
        stdout=asyncio.subprocess.PIPE,
    )
    try:
        yield child
    finally:
        if child.returncode is None:
            child.kill()
        await child.communicate()


def other(verb: str, url: str, *rest: object):
    return process("-m", "tests.stores.process", verb, url, *rest)


async def line(child: asyncio.subprocess.Process) -> str:
    async with asyncio.timeout(LINE_S):
        return (await child.stdout.readline()).decode().strip()


@asynccontextmanager
async def opened(url: str) -> AsyncIterator[Rig]:
    store = await SqliteStore.open(url)
    try:
        yield Rig(store, advance=no_advance)
    finally:
        await store.close()


@pytest.fixture
def url(tmp_path: Path) -> str:
    return f"sqlite:///{tmp_path / 'holdfast.db'}"


@pytest.mark.parametrize("attempt", range(5))
async def test_nothing_acknowledged_is_lost_by_kill_9(url: str, attempt: int) -> None:
    """P9: what a client has seen survives kill -9 of the process that wrote it, and the run ends."""
    pause_s = random.uniform(0.02, 0.4)
    print(f"pause_s={pause_s:.3f} attempt={attempt}")  # noqa: T201 - repeats a failure
    acknowledged: dict[str, int] = {}
    async with other("write", url, 3) as child:
        first = await line(child)
        await asyncio.sleep(pause_s)
        child.kill()
        rest, _ = await child.communicate()
    for said in [first, *rest.decode().splitlines(keepends=True)]:
        if said.endswith("\n") or said == first:  # a line cut by the kill was not said
            run, head = said.split()
            acknowledged[run] = int(head)
    assert acknowledged
    async with opened(url) as rig:
        for run, head in acknowledged.items():
            key = RunKey("local", run)
            events = await rig.log(key)
            assert len(events) >= head
            said = [int(e["text"]) for e in events if e["type"] == "text.delta"]
            assert said == list(range(len(said)))
        await rig.store.disown()
        await rig.reap()
        for record in await rig.runs():
            assert record.state.terminal
            assert (await rig.log(record.key))[-1]["type"] == "run.failed"


async def test_another_process_tails_while_this_one_writes(url: str) -> None:
    """A gateway reads what its worker writes: contiguous, from any offset, to the terminal event."""
    async with opened(url) as rig:
        holder = await rig.running()
        async with other("tail", url, holder.key.run, 0) as one, other("tail", url, holder.key.run, 1) as two:
            assert [await line(one), await line(two)] == ["tailing"] * 2
            for n in range(300):
                await holder.append(*[text(0, f"{n} ") for _ in range(1 + n % 4)])
                await asyncio.sleep(0.002)
            await holder.finish()
            for child, after in ((one, 0), (two, 1)):
                while (said := await line(child)) != "ended":
                    first, last = map(int, said.split())
                    assert first == after + 1
                    after = last
                assert after == holder.head


@pytest.mark.parametrize(("policy", "accepted"), [(Policy.REJECT, 1), (Policy.SUPERSEDE, 40), (Policy.ENQUEUE, 17)])
async def test_two_processes_create_on_one_session(url: str, policy: Policy, accepted: int) -> None:
    """P4: at most one run of a session is active, whichever process took the prompt."""
    async with opened(url) as rig:
        async with other("create", url, 20, policy) as one, other("create", url, 20, policy) as two:
            assert [await line(one), await line(two)] == ["ready"] * 2
            outputs = await asyncio.gather(one.communicate(b"\n"), two.communicate(b"\n"))
        answers = b"".join(out for out, _ in outputs).decode().split()
        assert len(answers) == 40
        assert answers.count("ok") == accepted
        assert len(await rig.claim(n=10)) == 1
        await rig.store.disown()
        await rig.reap()
        await rig.drive()
        assert await rig.store.active("local", "shared") is None


async def test_a_process_that_dies_inside_its_transaction_blocks_nobody(url: str, tmp_path: Path) -> None:
    """[EXP] a process frozen inside its transaction: others wait, and go on the moment it is killed."""
    async with opened(url) as rig:
        holder = await rig.running()
        async with process("-c", FROZEN, tmp_path / "holdfast.db") as child:
            assert await line(child) == "frozen"
            waiting = asyncio.create_task(holder.say("x"))
            reading = await rig.store.read(holder.key, 0)
            assert len(reading.events) == 2
            await asyncio.sleep(0.3)
            assert not waiting.done()
            child.kill()
            async with asyncio.timeout(2.0):
                assert (await waiting).status is Status.OK
    conn = sqlite3.connect(tmp_path / "holdfast.db")
    try:
        assert conn.execute("SELECT count(*) FROM meta WHERE key = 'frozen'").fetchone() == (0,)
    finally:
        conn.close()


async def test_readers_that_stand_still_do_not_grow_the_wal(url: str, tmp_path: Path) -> None:
    """[EXP] 3 readers with open cursors: 27 MB of WAL after 6 s and growing. Reads are short, and closed."""
    async with opened(url) as rig, opened(url) as reader:
        holder = await rig.running()
        tails = [store.tail(holder.key, 0, limit=1) for store in (rig.store, reader.store, reader.store)]
        for tail in tails:
            await anext(tail)
        for _ in range(120):
            await holder.append(text(0, "x" * 200_000))
        wal = (tmp_path / "holdfast.db-wal").stat().st_size
        for tail in tails:
            await tail.aclose()
    assert wal < 16_000_000


async def test_a_reboot_expires_nothing(tmp_path: Path) -> None:
    """[READ] lease time passes only while somebody reaps: a new boot's clock starts near zero."""
    harness = SqliteHarness(tmp_path)
    try:
        rig = Rig(await harness.open(), advance=harness.advance)
        holder = await rig.running(lease_ms=10_000)
        await rig.pass_time(4_000)
        harness.clock.reboot()
        rig = rig.at(await harness.reopen())
        assert await rig.reap() == []
        assert await rig.pass_time(5_000) == []
        assert await rig.state(holder.key) is State.RUNNING
        assert [r.key for r in await rig.pass_time(2_000)] == [holder.key]
    finally:
        await harness.close()


async def test_a_clock_that_went_back_expires_nothing_and_hangs_nothing(tmp_path: Path) -> None:
    """[READ] reap_at in the future: timers move with the clock instead of standing for the difference."""
    harness = SqliteHarness(tmp_path)
    try:
        rig = Rig(await harness.open(), advance=harness.advance)
        holder = await rig.running(lease_ms=10_000)
        await rig.pass_time(4_000)
        harness.clock.advance(-3_600_000)
        assert await rig.reap() == []
        assert await rig.pass_time(4_500) == []
        assert [r.key for r in await rig.pass_time(3_000)] == [holder.key]
    finally:
        await harness.close()

"""What happens to Redis happens to no run: memory, scripts, connections and the server itself go, and come again."""

import asyncio
import signal
import threading
from collections.abc import AsyncIterator, Iterator
from contextlib import aclosing, contextmanager
from pathlib import Path

import pytest
import pytest_asyncio

from holdfast.domain.errors import StoreUnavailable
from holdfast.domain.events import decode_event
from holdfast.domain.ids import RunKey
from holdfast.domain.runs import Policy, Reason, State
from holdfast.ports.store import Appended, RunStore, Status
from holdfast.stores.redis import RedisStore, link
from holdfast.testing.build import encode, new_run, text
from holdfast.testing.rig import GRACE_MS, LEASE_MS, Holder, Rig
from tests.redis_server import RedisServer
from tests.stores.redis_harness import RedisHarness

pytestmark = [pytest.mark.slow, pytest.mark.timeout(60)]

LIMIT_S = 30.0
PAUSED_S = 2.0


@pytest_asyncio.fixture
async def harness(redis_server: RedisServer) -> AsyncIterator[RedisHarness]:
    harness = RedisHarness(redis_server)
    yield harness
    await harness.close()


@pytest_asyncio.fixture
async def rig(harness: RedisHarness) -> AsyncIterator[Rig]:
    rig = Rig(await harness.open(), advance=harness.advance)
    yield rig
    await rig.close()


@pytest.fixture
def own_server(tmp_path: Path) -> Iterator[RedisServer]:
    """A server that a test may kill: what it acknowledged is on its disk."""
    server = RedisServer(tmp_path, "--appendonly", "yes", "--appendfsync", "always")
    server.start()
    yield server
    server.close()


async def _until_stored(holder: Holder, part: str) -> None:
    """Append as an executor does: a batch of unknown outcome is repeated as it was."""
    async with asyncio.timeout(LIMIT_S):
        try:
            answer = await holder.say(part)
        except StoreUnavailable:
            answer = await _until_answered(holder)
    assert answer.status in {Status.OK, Status.DUP}, answer
    holder.head = answer.head


async def _until_answered(holder: Holder) -> Appended:
    while True:
        try:
            return await holder.repeat()
        except StoreUnavailable:
            await asyncio.sleep(0.02)


async def _seqs(store: RunStore, key: RunKey) -> list[int]:
    """Read to the end, going on where an outage cut the reading, as the gateway does."""
    seen: list[int] = []
    async with asyncio.timeout(LIMIT_S):
        while True:
            try:
                async with aclosing(store.tail(key, len(seen))) as pages:
                    async for page in pages:
                        assert page.status is Status.OK
                        assert not page.resync
                        seen += [decode_event(data)["seq"] for data in page.events]
                return seen
            except StoreUnavailable:
                await asyncio.sleep(0.02)


def _texts(events: list[dict]) -> list[str]:
    return [event["text"] for event in events if event["type"] == "text.delta"]


class TestMemory:
    @contextmanager
    def _full(self, harness: RedisHarness) -> Iterator[None]:
        """Redis is at its limit: nothing more fits."""
        harness.client.config_set("maxmemory", 1)
        try:
            yield
        finally:
            harness.client.config_set("maxmemory", 0)

    async def test_creates_are_refused_with_a_remedy_and_leave_nothing(self, rig: Rig, harness: RedisHarness) -> None:
        """[EXP] a legacy script did ZREM, then HINCRBY failed: half an operation hangs its run for ever."""
        await rig.running()
        before = sorted(harness.client.keys(f"{harness.prefix}*"))
        with self._full(harness):
            for policy in Policy:
                with pytest.raises(StoreUnavailable) as refused:
                    await rig.store.create(new_run(policy=policy))
                assert refused.value.full
                assert "maxmemory" in refused.value.remedy
            assert await rig.store.claim("w", 5, LEASE_MS) == []
        assert sorted(harness.client.keys(f"{harness.prefix}*")) == before

    async def test_stops_and_ends_go_through(self, rig: Rig, harness: RedisHarness) -> None:
        """P1 and P2: whoever holds a run can end it, whoever watches can stop it, and no lease is lost."""
        holders = [await rig.running(f"s{n}") for n in range(4)]
        behind, queued = await rig.create("s0"), await rig.create("s4")
        with self._full(harness):
            with pytest.raises(StoreUnavailable):
                await holders[0].say("x")
            assert (await holders[0].finish()).status is Status.OK
            assert (await rig.store.request_stop(holders[1].key, Reason.STOPPED, "user")).status is Status.OK
            assert (await holders[1].finish(State.CANCELLED)).status is Status.OK
            assert (await holders[2].release()).status is Status.OK
            (renewal,) = await rig.store.renew("w", [holders[3].held], LEASE_MS)
            assert not renewal.lost
            await rig.store.disown()
            assert [r.key for r in await rig.reap()] == [holders[3].key]
            assert (await rig.store.request_stop(queued, Reason.STOPPED, "user")).status is Status.OK
            assert await rig.state(queued) is State.CANCELLED
            assert await rig.store.delete_session("local", "s4", "user") is Status.OK
            facts = await rig.store.health()
            assert facts["low_space"]
            assert "maxmemory" in facts["error"]
        assert "error" not in await rig.store.health()
        assert await rig.drive() == [holders[2].key, behind]

    async def test_a_sweep_makes_room(self, rig: Rig, harness: RedisHarness) -> None:
        """It is what a full memory needs."""
        holder = await rig.running()
        await holder.finish()
        await harness.advance(10_000)
        with self._full(harness):
            assert await rig.sweep(older_than_ms=1_000, bytes_max=2**40) == 1
        assert (await rig.store.read(holder.key, 0)).status is Status.GONE


class TestScripts:
    async def test_flushed_scripts_are_loaded_again(self, rig: Rig, harness: RedisHarness) -> None:
        """A restart or an operator's SCRIPT FLUSH takes them away in the middle of anything."""
        over = asyncio.Event()

        async def flush() -> None:
            while not over.is_set():
                harness.client.script_flush()
                await asyncio.sleep(0.002)

        flushing = rig.spawn(flush())
        for n in range(10):
            holder = await rig.running(f"s{n}")
            for part in range(5):
                assert (await holder.say(f"{part}")).status is Status.OK
            assert (await holder.finish()).status is Status.OK
            assert _texts(await rig.log(holder.key)) == ["0", "1", "2", "3", "4"]
        harness.client.script_flush()
        heart = rig.store.heart()
        assert await rig.in_thread(heart.renew, "w", [], LEASE_MS, {}) == []
        await rig.in_thread(heart.close)
        over.set()
        await flushing


class TestConnections:
    async def test_killed_connections_cost_no_reader_an_event(self, rig: Rig, harness: RedisHarness) -> None:
        """CLIENT KILL, a proxy's timeout, a network that goes: readers and writers find each other again."""
        other = await harness.another()
        holder = await rig.running()
        readers = [rig.spawn(_seqs(store, holder.key)) for store in (rig.store, other, other)]
        for n in range(150):
            await _until_stored(holder, f"{n}")
            if n % 25 == 10:
                for kind in ("pubsub", "normal"):
                    harness.client.execute_command("CLIENT", "KILL", "TYPE", kind, "SKIPME", "yes")
            await asyncio.sleep(0.005)
        answer = await holder.finish()
        for reader in readers:
            assert await reader == list(range(1, answer.head + 1))
        assert _texts(await rig.log(holder.key)) == [str(n) for n in range(150)]

    async def test_wakes_come_again_after_their_connection_was_killed(self, rig: Rig, harness: RedisHarness) -> None:
        """Not only the safety poll: the hub begins again, and says that it did."""
        said: list[str] = []
        store = await RedisStore.open(
            harness.url, library=harness.library, say=lambda event, **facts: said.append(event)
        )
        try:
            harness.client.execute_command("CLIENT", "KILL", "TYPE", "pubsub")
            async with asyncio.timeout(LIMIT_S):
                while "store_connected" not in said:
                    await asyncio.sleep(0.01)
            with store.subscribe("ready") as wake:
                await rig.create()
                assert await wake.wait(5)
        finally:
            await store.close()

    async def test_more_calls_than_connections_wait_their_turn(self, rig: Rig, harness: RedisHarness) -> None:
        """redis-py's pool raises where it is empty; ours is a bound, not a failure."""
        keys = await asyncio.gather(*(rig.create(f"s{n}") for n in range(400)))
        assert len(set(keys)) == 400
        assert len(harness.client.client_list(_type="normal")) < 40

    async def test_many_readers_of_one_run_share_its_reads(self, rig: Rig, harness: RedisHarness) -> None:
        """[EXP] 200 readers that read for themselves: 29 % of a core, 9 ms. And each has every event all the same."""
        holder = await rig.running()
        readers = [rig.spawn(_seqs(rig.store, holder.key)) for _ in range(200)]
        await asyncio.sleep(0.3)
        before = harness.client.info("commandstats")["cmdstat_evalsha"]["calls"]
        for n in range(20):
            await holder.say(f"{n}")
            await asyncio.sleep(0.02)
        readers[0].cancel()
        await holder.finish()
        for reader in readers[1:]:
            assert await reader == list(range(1, holder.head + 1))
        calls = harness.client.info("commandstats")["cmdstat_evalsha"]["calls"] - before
        assert calls < 200 * 20 / 2  # 43, unless the machine pauses and the safety polls come

    async def test_a_cancelled_call_leaves_no_answer_for_the_next(self, rig: Rig) -> None:
        """Readers that go away in the middle are the normal case; their answers must not reach somebody else."""
        holder = await rig.running()
        await holder.append(*[text(0, "x" * 500) for _ in range(200)])
        for n in range(60):
            task = rig.spawn(rig.store.read(holder.key, 0))
            for _ in range(n % 12):
                await asyncio.sleep(0)
            task.cancel()
            await asyncio.wait([task], timeout=5)
            assert (await rig.record(holder.key)).key == holder.key

    async def test_a_store_serves_other_loops(self, rig: Rig) -> None:
        """`--in-process`: the worker has a thread and a loop of its own."""
        key = await rig.create()
        found: list[State] = []

        async def look() -> None:
            record = await rig.store.get(key)
            assert record is not None
            found.append(record.state)

        thread = threading.Thread(target=lambda: asyncio.run(look()))
        thread.start()
        async with asyncio.timeout(LIMIT_S):
            while thread.is_alive():
                await asyncio.sleep(0.01)
        assert found == [State.QUEUED]


class TestServer:
    @pytest.fixture
    def impatient(self, monkeypatch: pytest.MonkeyPatch) -> None:
        """Five seconds of patience would only make the tests slower."""
        monkeypatch.setattr(link, "CALL_S", PAUSED_S / 2)

    @pytest.mark.usefixtures("impatient")
    async def test_a_pause_in_an_append_makes_no_duplicate(self, rig: Rig, redis_server: RedisServer) -> None:
        """[EXP] the client gave up, and the write was applied after: repeated as it was, it is known."""
        holder = await rig.running()
        redis_server.signal(signal.SIGSTOP)
        try:
            with pytest.raises(StoreUnavailable):
                await holder.say("once")
        finally:
            redis_server.signal(signal.SIGCONT)
        async with asyncio.timeout(LIMIT_S):
            answer = await _until_answered(holder)
        assert answer.status in {Status.DUP, Status.OK}
        holder.head = answer.head
        assert (await holder.repeat()).status is Status.DUP
        assert (await holder.finish()).status is Status.OK
        assert _texts(await rig.log(holder.key)) == ["once"]

    @pytest.mark.usefixtures("impatient")
    async def test_a_pause_ends_no_lease(self, redis_server: RedisServer) -> None:
        """[READ] paused, with a renewal that is due meanwhile: mass false takeover."""
        harness = RedisHarness(redis_server, real_time=True)
        rig = Rig(await harness.open(), advance=harness.advance)
        holder = await rig.running(lease_ms=3_500)
        await rig.reap()
        redis_server.signal(signal.SIGSTOP)
        await asyncio.sleep(4.0)
        redis_server.signal(signal.SIGCONT)
        async with asyncio.timeout(LIMIT_S):
            while True:
                try:
                    assert await rig.store.reap(100, GRACE_MS) == []
                    (renewal,) = await rig.store.renew("w", [holder.held], LEASE_MS)
                    break
                except StoreUnavailable:
                    await asyncio.sleep(0.02)
        assert not renewal.lost
        assert (await holder.say("still mine")).status is Status.OK
        await rig.close()
        await harness.close()

    async def test_what_was_acknowledged_survives_kill_9_of_redis(self, own_server: RedisServer) -> None:
        """P9, with appendfsync always: the log has every acknowledged event once, and writers and readers go on."""
        harness = RedisHarness(own_server)
        rig = Rig(await harness.open(), advance=harness.advance)
        other = await harness.another()
        holders = [await rig.running(f"s{n}") for n in range(4)]
        readers = [rig.spawn(_seqs(other, holder.key)) for holder in holders]
        over = asyncio.Event()

        async def write(holder: Holder) -> int:
            n = 0
            while not over.is_set():
                await _until_stored(holder, f"{n}")
                n += 1
            return n

        writers = [rig.spawn(write(holder)) for holder in holders]
        for _ in range(3):
            await asyncio.sleep(0.3)
            own_server.kill()
            await asyncio.sleep(0.1)
            own_server.start()
        await asyncio.sleep(0.3)
        over.set()
        for holder, writer, reader in zip(holders, writers, readers, strict=True):
            written = await writer
            assert (await holder.finish()).status is Status.OK
            events = await rig.log(holder.key)
            assert _texts(events) == [str(n) for n in range(written)]
            assert await reader == list(range(1, len(events) + 1))
        await rig.close()
        await harness.close()

    async def test_a_store_that_lost_its_end_is_a_gap(self, rig: Rig, harness: RedisHarness) -> None:
        """[READ] failover or power loss: seqs must not be used again with other content under the same claim."""
        holder = await rig.running()
        await holder.append(text(0, "a"), text(0, "b"))
        uid = f"{len('local')}:local/{holder.key.run}"
        harness.client.xtrim(f"{harness.prefix}log:{uid}", maxlen=0)
        harness.client.hset(f"{harness.prefix}run:{uid}", "head", 2)
        answer = await rig.store.append(
            holder.key, holder.fence, holder.head, encode(holder.key.run, holder.head, [text(0, "c")])
        )
        assert (answer.status, answer.head) == (Status.GAP, 2)

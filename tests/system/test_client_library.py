"""P3 and P9 for the client library, sync and async, against real servers: cut, silenced, killed, stopped by others."""

from __future__ import annotations

import json
import random
import shutil
import signal
import subprocess
import threading
from collections.abc import Iterator
from contextlib import ExitStack, closing, contextmanager
from pathlib import Path
from typing import Any

import anyio
import pytest

from holdfast.client import AsyncClient, Client, Conflict, NotFound
from tests.deploy.nginx import Nginx
from tests.system.client_readers import FOLLOWS, NODE, Behind, Readers
from tests.system.conftest import DIVER, TICKER
from tests.system.proxy import CuttingProxy
from tests.system.reading import ticks
from tests.system.support import System, check_log, full, until

CUTS = full(100, 15)
EVENTS = full(3000, 600)
SECONDS = full(8, 2)
SILENCE_S = 2.0  # the servers here send keepalives each second
KEEPALIVE = {"HOLDFAST_KEEPALIVE_S": "1"}


@pytest.fixture(scope="module")
def system(tmp_path_factory: pytest.TempPathFactory) -> Iterator[System]:
    """A server whose keepalives come each second, as `start_system` here gets them, too."""
    env = {"HOLDFAST_SPARE": "false", **KEEPALIVE}
    directory = tmp_path_factory.mktemp("system")
    shutil.copy(Path(__file__).with_name("agents_asking.py"), directory)
    with closing(System(directory, DIVER, TICKER, "agents_asking:plain", env=env)) as system:
        yield system


@contextmanager
def cutting(port: int, run_bytes: int, seed: int) -> Iterator[CuttingProxy]:
    """Cuts CUTS connections at random positions, then lets them live."""
    chance = random.Random(seed)
    left = [chance.randrange(1, max(2, 2 * run_bytes // CUTS)) for _ in range(CUTS)]
    with closing(CuttingProxy(port, lambda: left.pop() if left else None)) as proxy:
        yield proxy


@pytest.mark.slow
@pytest.mark.timeout(full(120, 40))
@pytest.mark.parametrize("way", full(["direct", "nginx"], ["direct"]))
def test_clients_that_are_cut_anywhere_get_the_log_exactly(system: System, figures: Any, tmp_path: Path, way: str):
    """Headers, ids, data: wherever the bytes end, the text is exact, nothing is missing and nothing comes twice.

    At full size behind nginx as it buffers by default, too.
    """
    seed = random.randrange(2**32)
    print(f"seed {seed}")  # noqa: T201 - shown on failure, to repeat it
    run = system.run(ticks(EVENTS, SECONDS), agent="ticker")
    with ExitStack() as stack:
        port = system.http.port
        if way == "nginx":
            port = stack.enter_context(closing(Nginx(tmp_path, [port] * 2, leave_out="proxy_buffering"))).http.port
        proxies = [stack.enter_context(cutting(port, EVENTS * 250, seed + i)) for i in range(len(FOLLOWS))]
        readers = [Behind(follow, proxy.url, run) for follow, proxy in zip(FOLLOWS, proxies, strict=True)]
        found = [reader.events(90) for reader in readers]
    log = system.events(run)
    check_log(log)
    for reader, events, proxy in zip(readers, found, proxies, strict=True):
        assert events == log, f"{reader.name}, seed {seed}"
        assert proxy.cuts >= CUTS * 0.6, f"{reader.name}, seed {seed}: {proxy.cuts} cuts"
        states = [each.state for each in reader.heard]
        assert states[0] == "connecting"
        assert (states.count("ended"), states[-1]) == (1, "ended")
        assert all(each.cause and each.wait_s > 0 for each in reader.heard if each.state == "reconnecting")
    said = ", ".join(f"{reader.name} {proxy.cuts} cuts" for reader, proxy in zip(readers, proxies, strict=True))
    figures(f"client libraries behind a proxy that cuts ({way})", [f"{len(log)} events: {said}, seed {seed}"])


@pytest.mark.slow
@pytest.mark.timeout(60)
def test_a_half_open_connection_is_found_by_its_silence(system: System):
    """F50: a laptop that slept, a NAT that forgot: no FIN comes, and the keepalives that are missing tell it."""
    run = system.run("!tokens n=100000 rate=50", agent="diver")
    with closing(CuttingProxy(system.http.port)) as proxy:
        readers = Readers(proxy.url, run, SILENCE_S)
        readers.until_saw("live")
        proxy.silent.set()
        readers.until_saw("reconnecting")
        proxy.silent.clear()
        readers.until_last("live")
        system.stop(run)
        events = readers.events()
    assert events == system.events(run)
    assert proxy.connections >= 2 * len(readers.each)
    for reader in readers.each:
        assert "Timeout" in next(each.cause for each in reader.heard if each.state == "reconnecting")


@pytest.mark.slow
@pytest.mark.timeout(120)
def test_a_server_that_is_paused_and_then_dies_is_followed_to_the_end(start_system: Any):
    """P9: SIGSTOP accepts connections and says nothing on them; kill -9 and a new start. The end is seen once."""
    system = start_system(**KEEPALIVE)
    run = system.run("!tokens n=100000 rate=50", agent="diver")
    readers = Readers(f"http://127.0.0.1:{system.http.port}", run, SILENCE_S)
    readers.until_saw("live")
    system.server.signal(signal.SIGSTOP)
    try:
        readers.until_saw("reconnecting")
    finally:
        system.server.signal(signal.SIGCONT)
    readers.until_last("live")
    system.until_text(run, "t5 ")
    system.kill()
    readers.until_not_live()
    system.start()
    readers.until_last("live")
    system.stop(run)
    events = readers.events()
    assert events == system.events(run)
    check_log(events)


@pytest.mark.slow
@pytest.mark.timeout(60)
def test_everybody_sees_the_stop_of_another_client(system: System):
    """P2: whoever stops it, all that watch hear of one end, the same."""
    url = f"http://127.0.0.1:{system.http.port}"
    with Client(url) as client:
        run = client.start("!tokens n=100000 rate=50", agent="diver", session="stopped-by-another")["id"]
        readers = Readers(url, run)
        readers.until_saw("live")

        async def stop() -> dict[str, Any]:
            async with AsyncClient(url) as other:
                return await other.stop(run, wait_s=20)

        record = anyio.run(stop)
        assert (record["state"], record["reason"]) == ("cancelled", "stopped")
        events = readers.events()
        assert events == system.events(run)
        assert events[-1]["type"] == "run.cancelled"
        assert client.stop(run)["state"] == "cancelled"
        assert [each["id"] for each in client.runs(session="stopped-by-another")["runs"]] == [run]
        assert [each["role"] for each in client.history("stopped-by-another")] == ["user", "assistant"]
        with pytest.raises(NotFound) as caught:
            client.record("r_none")
        assert (caught.value.code, caught.value.retryable) == ("unknown_run", False)
        with pytest.raises(Conflict):
            client.steer(run, "too late")
        client.forget_session("stopped-by-another")
        with pytest.raises(NotFound):
            client.session("stopped-by-another")


@pytest.mark.slow
@pytest.mark.timeout(60)
@pytest.mark.parametrize("form", ["sync", "async", "javascript"])
def test_clients_steer_and_decide(system: System, form: str):
    """A run that waits is handed an input and an answer, and goes on with both, before the eyes of who decided."""
    url = f"http://127.0.0.1:{system.http.port}"
    run = system.run("hello", agent="plain")
    if form == "javascript":
        if NODE is None:
            pytest.skip("no node")
        command = [NODE, Path(__file__).with_name("decider.mjs"), url, run]
        result = subprocess.run(command, capture_output=True, text=True, timeout=40, check=False)
        assert result.returncode == 0, result.stderr
        output = json.loads(result.stdout)
    else:
        output = decide_sync(url, run) if form == "sync" else anyio.run(decide_async, url, run)
    assert output == "You said on. yes"
    assert system.record(run)["state"] == "completed"


def decide_sync(url: str, run: str) -> Any:
    with Client(url) as client:
        for event in client.follow(run):
            if event["type"] == "run.waiting":
                client.steer(run, "on")
                client.decide(run, [{"call": each["call"], "approve": True} for each in event["requests"]])
            if event["type"] == "run.completed":
                return event["output"]
    return None


async def decide_async(url: str, run: str) -> Any:
    async with AsyncClient(url) as client, client.follow(run) as events:
        async for event in events:
            if event["type"] == "run.waiting":
                await client.steer(run, "on")
                await client.decide(run, [{"call": each["call"], "approve": True} for each in event["requests"]])
            if event["type"] == "run.completed":
                return event["output"]
    return None


@pytest.mark.slow
@pytest.mark.timeout(60)
def test_clients_leave_no_thread_and_no_reader_behind(system: System):
    """A follow that is left holds neither a thread here nor a reader there."""
    before = threading.active_count()
    run = system.run("!tokens n=100000 rate=50", agent="diver")
    url = f"http://127.0.0.1:{system.http.port}"
    for _ in range(20):
        with Client(url) as client, client.follow(run) as events:
            next(events)
        assert events.connection.state == "closed"
    assert threading.active_count() == before

    async def leave() -> None:
        async with AsyncClient(url) as client:
            for _ in range(20):
                async with client.follow(run) as events:
                    await anext(events)
                assert events.connection.state == "closed"

    anyio.run(leave)
    until(lambda: system.http.get("/health")["readers"] == 0, "no reader is left")
    system.stop(run)

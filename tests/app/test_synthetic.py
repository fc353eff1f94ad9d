"""Synthetic runs: readiness is proven by a run that was taken, which nobody sees and which takes nobody's place."""

from __future__ import annotations

import asyncio
import io
import socket
import time
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager, closing
from pathlib import Path
from typing import Any

import httpx2
import pytest

from holdfast.agents.generator import GeneratorAgent
from holdfast.app.readiness import full
from holdfast.app.runtime import Runtime
from holdfast.config import Settings
from holdfast.domain.ids import SYNTHETIC_AGENT, SYNTHETIC_TENANT
from holdfast.ports.records import WorkerRecord
from holdfast.telemetry import Log

pytestmark = pytest.mark.timeout(60)
KEYS = "alice:alice-has-a-long-key,bob:bob-has-a-long-key-too"
ALICE = {"Authorization": "Bearer alice-has-a-long-key"}


async def waits(ctx: Any) -> AsyncIterator[str]:
    yield "hello"
    await asyncio.sleep(30)


@asynccontextmanager
async def served(directory: Path, **settings: Any) -> AsyncIterator[tuple[Runtime, httpx2.AsyncClient, io.StringIO]]:
    lines = io.StringIO()
    given = Settings(port=0, store=f"sqlite:///{directory / 'h.db'}", drain_s=0, **settings)
    agents = [GeneratorAgent(waits, "waits")]
    async with (
        Runtime(given, agents=agents, log=Log(stream=lines)) as runtime,
        httpx2.AsyncClient(base_url=runtime.url, timeout=10) as http,
    ):
        yield runtime, http, lines


async def until(http: httpx2.AsyncClient, fits: Callable[[dict[str, Any]], Any], limit_s: float = 20) -> dict[str, Any]:
    """The answer of /readyz, once it fits."""
    end, found = time.monotonic() + limit_s, {}
    while time.monotonic() < end:
        found = (await http.get("/readyz")).json()
        if fits(found):
            return found
        await asyncio.sleep(0.05)
    raise AssertionError(found)


async def test_a_synthetic_run_proves_readiness_and_nobody_sees_it(tmp_path: Path) -> None:
    """Through the door of a keyed server, to a worker and back; in no list, session, log line or count."""
    async with served(tmp_path, api_keys=KEYS, synthetic_run_s=0.2) as (runtime, http, lines):
        assert "parts" not in await until(http, lambda found: found["ready"])  # not for strangers
        first = (await http.get("/readyz", headers=ALICE)).json()
        assert set(first["parts"]) == {"store", "worker", "run"}
        assert first["parts"]["run"]["took_ms"] < 10_000
        worked = runtime._synthetic.worked.at
        await until(http, lambda _: runtime._synthetic.worked.at > worked)  # and again, by its schedule
        await http.post("/api/runs", json={"input": "x"}, headers=ALICE)
        assert len((await http.get("/api/runs", headers=ALICE)).json()["runs"]) == 1
        assert len((await http.get("/api/sessions", headers=ALICE)).json()["sessions"]) == 1
        workers = (await http.get("/api/workers", headers=ALICE)).text
        assert SYNTHETIC_AGENT not in workers
        assert SYNTHETIC_TENANT not in workers
        metrics = (await http.get("/metrics", headers=ALICE)).text
        assert "holdfast_ready 1.0" in metrics
        assert "holdfast_started 1.0" in metrics
        assert "holdfast_synthetic_run_age_seconds" in metrics
        assert "holdfast_runs_ended_total{" not in metrics
        assert 'route="/api/runs",status="201"} 1.0' in metrics
        assert 'holdfast_runs{state="cancelled"}' not in metrics
    assert lines.getvalue().count("stream_requested") == 1


async def test_synthetic_runs_take_nobodys_place_and_no_limit_holds_them(tmp_path: Path) -> None:
    """The limit of runs is the users': a full server is not unready for it, and no run is refused for a proof."""
    limits = {"runs_active": 1, "tenant_requests": 1, "tenant_rate_per_s": 1, "tenant_burst": 1}
    async with served(tmp_path, api_keys=KEYS, synthetic_run_s=0.1, **limits) as (runtime, http, _):
        got = await http.post("/api/runs", json={"input": "x"}, headers=ALICE)
        assert got.status_code == 201
        began = time.monotonic()
        await until(http, lambda found: runtime._synthetic.worked and runtime._synthetic.worked.at > began)
        assert (await runtime.store.health())["runs"] == {"running": 1}


async def test_a_proof_that_had_to_wait_for_a_full_worker_is_no_failure(tmp_path: Path, monkeypatch: Any) -> None:
    """A busy server is ready; that nothing was proven shows in the age of the last proof."""
    monkeypatch.setattr("holdfast.app.synthetic.LIMIT_S", 0.5)
    async with served(tmp_path, concurrency=1, renew_s=0.2, synthetic_run_s=0.2) as (runtime, http, lines):
        await until(http, lambda found: found["ready"])
        run = (await http.post("/api/runs", json={"input": "x"})).json()["id"]
        await until(http, lambda _: "synthetic_run_waits" in lines.getvalue())
        assert (await http.get("/readyz")).json()["ready"]
        worked = runtime._synthetic.worked.at
        await http.post(f"/api/runs/{run}/stop")
        await until(http, lambda found: found["ready"] and runtime._synthetic.worked.at > worked)


async def test_a_worker_that_takes_no_runs_makes_the_server_unready_with_the_step(
    tmp_path: Path, monkeypatch: Any
) -> None:
    """Beats, reports and a store that answers prove nothing about runs; where it hangs is said, and it recovers."""
    monkeypatch.setattr("holdfast.app.synthetic.LIMIT_S", 0.5)
    monkeypatch.setattr("holdfast.app.synthetic.AGAIN_S", 0.1)
    async with served(tmp_path, synthetic_run_s=0.1) as (runtime, http, lines):
        await until(http, lambda found: found["ready"])
        claim = runtime.store.claim

        async def nothing(*_: Any) -> list[Any]:
            return []

        runtime.store.claim = nothing
        found = await until(http, lambda found: not found["ready"])
        assert "hangs at: worker" in found["detail"], found
        assert found["parts"]["worker"]["ok"]
        assert "synthetic_run_failed" in lines.getvalue()
        runtime.store.claim = claim
        await until(http, lambda found: found["ready"])
        assert "synthetic_run_works" in lines.getvalue()


async def test_every_probe_answers_within_a_second_while_store_and_model_hang(tmp_path: Path, monkeypatch: Any) -> None:
    """A frozen store and a model that takes connections and says nothing: each part is named, none hides another."""

    async def never(*_: Any, **__: Any) -> Any:
        await asyncio.sleep(60)

    model = socket.create_server(("127.0.0.1", 0))  # the system takes connections for it
    url = f"http://127.0.0.1:{model.getsockname()[1]}/v1"
    monkeypatch.setattr("holdfast.app.runtime.find_model", never_missing)
    with closing(model):
        async with served(tmp_path, model="m", model_url=url) as (runtime, http, _):
            await until(http, lambda found: found["parts"]["worker"]["ok"])
            for name in ("health", "workers", "create"):
                monkeypatch.setattr(runtime.store, name, never)
            for path in ("/livez", "/readyz", "/startupz", "/health", "/version", "/metrics"):
                took = []
                for _ in range(3):  # the best of three: the machine is shared
                    began = time.monotonic()
                    got = await http.get(path)
                    took.append(time.monotonic() - began)
                    if took[-1] < 1:
                        break
                assert min(took) < 1, (path, took)
                assert got.status_code == (503 if path == "/readyz" else 200), got.text
            parts = (await http.get("/readyz")).json()["parts"]
            assert {name for name, part in parts.items() if not part["ok"]} >= {"store", "worker", "model"}
            assert "did not answer within 0.6 s" in parts["store"]["why"]


async def never_missing(settings: Settings) -> str:
    return ""


def test_workers_are_full_only_where_all_of_them_are() -> None:
    """One that has room, or none that accepts, is no reason to wait."""

    def worker(runs: int, *, accepting: bool = True) -> WorkerRecord:
        return WorkerRecord("w", 0, {"runs": runs, "concurrency": 4, "accepting": accepting})

    assert "2 workers" in full([worker(4), worker(5)])
    assert not full([worker(4), worker(3)])
    assert "1 workers" in full([worker(4), worker(0, accepting=False)])
    assert not full([worker(4, accepting=False)])
    assert not full([])

"""Streams over HTTP with keys: they end with what opened them. And what strangers learn of what is open to all."""

from __future__ import annotations

import json
import time
from pathlib import Path

import httpx2
import pytest

from holdfast.config import Settings
from holdfast.gateway import api_keys
from holdfast.gateway.access import Access
from holdfast.gateway.refusing import RefusingApp
from holdfast.telemetry import Log
from tests.access.support import ALICE, BOB, KEYS, READER, bearer, keyed, token
from tests.gateway.support import NDJSON, SSE, Site

pytestmark = pytest.mark.timeout(60)
WHY = "cannot open /secret/place/h.db"


async def read(here: Site, run: str, headers: dict[str, str]) -> list[str]:
    """The lines of a stream, once the server has ended it."""
    async with here.http.stream("GET", f"/api/runs/{run}/events", headers=headers, timeout=20) as response:
        return [line async for line in response.aiter_lines() if line]


@pytest.mark.parametrize("form", [SSE, NDJSON], ids=["sse", "ndjson"])
async def test_a_stream_ends_with_its_token(tmp_path: Path, form: dict[str, str]) -> None:
    """It would outlive the right to read it by hours; the run goes on, and a new token reads the rest."""
    async with keyed(tmp_path, jwt_leeway_s=0) as here:
        started = await here.http.post("/api/runs", json={"input": "x"}, headers=bearer(token()))
        run = started.json()["id"]
        began = time.monotonic()
        lines = await read(here, run, {**form, **bearer(token(exp=int(time.time()) + 2))})
        assert time.monotonic() - began < 10
        if form is SSE:
            assert lines[-2] == "event: unauthorized"
        last = json.loads(lines[-1].removeprefix("data: "))
        assert (last["code"], last["detail"]) == ("unauthorized", "the token has expired")
        assert "seq" not in last
        got = await here.http.get(f"/api/runs/{run}", headers=bearer(token()))
        assert got.json()["state"] == "queued"
        again = await here.http.get(
            f"/api/runs/{run}/events", headers={"Accept": "application/json", **bearer(token())}
        )
        assert again.json()["events"][0]["type"] == "run.created"


@pytest.mark.parametrize("form", [SSE, NDJSON], ids=["sse", "ndjson"])
async def test_a_list_ends_with_its_key_or_token(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, form: dict[str, str]
) -> None:
    """Nothing happens in it, and its reader is looked at all the same."""
    monkeypatch.setattr(api_keys, "_LOOK_S", 0.0)
    keys = tmp_path / "keys"
    keys.write_text(f"alice:{ALICE}\n")
    async with keyed(tmp_path, jwt_leeway_s=0, api_keys="", api_keys_file=str(keys)) as here:
        for by_key in (True, False):
            headers = {**form, **bearer(ALICE if by_key else token(exp=int(time.time()) + 3))}
            async with here.http.stream("GET", "/api/events", headers=headers, timeout=20) as response:
                assert response.status_code == 200
                if by_key:
                    keys.write_text("")
                lines = [line async for line in response.aiter_lines() if line]
            last = json.loads(lines[-1].removeprefix("data: "))
            assert last["code"] == "unauthorized"
            assert lines[-2] == "event: unauthorized" or last["type"] == "unauthorized"


async def test_a_list_is_of_ones_own_tenant(tmp_path: Path) -> None:
    """P12: what another does is in no frame, and not even a reason for one."""
    headers = {**NDJSON, **bearer(READER)}
    async with keyed(tmp_path) as here, here.http.stream("GET", "/api/events", headers=headers) as response:
        lines = response.aiter_lines()
        assert json.loads(await anext(lines)) == {"type": "runs", "runs": []}
        for key in (BOB, ALICE):
            await here.http.post("/api/runs", json={"input": key}, headers=bearer(key))
        assert json.loads(await anext(lines))["input"] == ALICE


async def test_a_stream_of_a_completion_ends_with_its_key(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Withdrawn while a client of OpenAI reads: its stream ends with an error."""
    monkeypatch.setattr(api_keys, "_LOOK_S", 0.0)
    keys = tmp_path / "keys"
    keys.write_text(f"alice:{ALICE}\n")
    async with keyed(tmp_path, api_keys="", api_keys_file=str(keys)) as here:
        body = {"model": "echo", "stream": True, "messages": [{"role": "user", "content": "x"}]}
        lines = []
        stream = here.http.stream("POST", "/v1/chat/completions", json=body, headers=bearer(ALICE), timeout=20)
        async with stream as response:
            assert response.status_code == 200
            keys.write_text("")
            lines = [line async for line in response.aiter_lines() if line]
        error = json.loads(lines[-2].removeprefix("data: "))["error"]
        assert (error["code"], error["message"]) == ("unauthorized", "the API key alice was withdrawn")


async def test_strangers_are_told_whether_and_not_why(tmp_path: Path) -> None:
    """A load balancer has no key, and what fails names files, addresses and models."""

    async def broken() -> dict:
        return {"ready": False, "parts": {"store": {"ok": False, "why": WHY}}}

    async with keyed(tmp_path) as here:
        for path, said in (("/readyz", {"ready": True}), ("/startupz", {"started": True})):
            assert (await here.http.get(path)).json() == said
        here.ready = broken
        for headers in ({}, bearer("unknown"), {"Authorization": "Basic x"}):
            for path, status in (("/readyz", 503), ("/health", 200), ("/startupz", 200)):
                got = await here.http.get(path, headers=headers)
                assert got.status_code == status
                assert "secret" not in got.text
                assert "parts" not in got.text
                assert "agents" not in got.text
        known = await here.http.get("/readyz", headers=bearer(READER))
        assert (known.status_code, known.json()["detail"]) == (503, f"store: {WHY}")
        assert (await here.http.get("/health", headers=bearer(READER))).json()["agents"] == ["echo"]


async def test_a_server_that_could_not_start_tells_strangers_nothing_of_why(tmp_path: Path) -> None:
    """The report of the start has it all, for who has a key."""
    settings = Settings(api_keys=KEYS)
    phases = [{"phase": "store", "ok": False, "why": WHY}]
    app = RefusingApp(settings, {"version": "0"}, {"started": False, "phases": phases}, WHY, Access(settings, Log()))
    async with httpx2.AsyncClient(transport=httpx2.ASGITransport(app), base_url="http://x") as http:
        assert (await http.get("/livez")).status_code == 200
        for path in ("/readyz", "/startupz", "/health", "/api/runs", "/metrics"):
            got = await http.get(path)
            assert (got.status_code, got.json()["code"]) == (503, "not_ready")
            assert "secret" not in got.text
            if path != "/metrics":
                assert WHY in (await http.get(path, headers=bearer(ALICE))).text
        metrics = (await http.get("/metrics", headers=bearer(ALICE))).text
        assert "holdfast_started 0.0" in metrics
        assert "holdfast_ready 0.0" in metrics

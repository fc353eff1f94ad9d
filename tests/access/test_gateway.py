"""Every path, asked by nobody, by strangers, and by another tenant: nothing leaks, nothing stops."""

import asyncio
import io
import json
import re
import time
from itertools import product
from pathlib import Path
from typing import Any

import httpx2
import pytest

from holdfast.app.runtime import Runtime
from holdfast.config import Settings
from holdfast.domain.ids import RunKey
from holdfast.domain.runs import State
from holdfast.gateway import access, api_keys
from holdfast.gateway.access import OPEN
from holdfast.gateway.app import OPERATIONS
from holdfast.gateway.routes import Operation
from holdfast.telemetry import Log
from holdfast.testing import build
from tests.access.support import ALICE, BOB, READER, bearer, keyed, token
from tests.access.test_tokens import BAD
from tests.gateway.support import JSON, SSE, Raw, Site, site

pytestmark = pytest.mark.timeout(60)

CLOSED = [operation for operation in OPERATIONS if operation.path not in OPEN]
BODIES: dict[str, dict[str, Any]] = {
    "PATCH /api/runs/{run}": {"input": "x"},
    "POST /api/runs/{run}/steer": {"input": "x"},
    "POST /api/runs/{run}/decisions": {"decisions": [{"call": "c", "approve": True}]},
    "POST /ag-ui/{agent}": {"threadId": "s_x", "runId": "x", "messages": [{"role": "user", "content": "x"}]},
}
# A chat of somebody else is one in which nothing is active, as is one that never was.
NOTHING = {"/api/chat/{id}/stream": 204, "/api/chat/{id}/stop": 202}


async def ask(here: Site, row: Operation, headers: dict[str, str], run: str = "r_x", session: str = "s_x") -> Any:
    path = row.path.replace("{session}", session).replace("{response}", f"resp_{run}")
    path = re.sub(r"{\w+}", run, path.replace("{id}", session))
    body = BODIES.get(f"{row.method} {row.path}", {"input": "x"} if row.body is not None else None)
    return await here.http.request(row.method, path, headers={**JSON, **headers}, json=body)


STRANGERS = [
    {},
    bearer("unknown"),
    {"Authorization": f"Basic {ALICE}"},
    {"Authorization": "Bearer"},
    bearer("x" * 20_000),
]


async def test_nobody_is_let_in_without_a_key(tmp_path: Path) -> None:
    """401 with the way in, on every path; whether what it names exists is not told."""
    async with keyed(tmp_path) as here:
        run = (await here.http.post("/api/runs", json={"input": "x"}, headers=bearer(ALICE))).json()
        for row, headers, known in product(CLOSED, STRANGERS, (run["id"], "r_x")):
            got = await ask(here, row, headers, known, run["session"])
            assert got.status_code == 401, (row.path, headers, got.text)
            assert got.headers["www-authenticate"].startswith("Bearer")
            assert run["id"] not in got.text
            assert ALICE not in got.text
        assert (await here.store.get(RunKey("alice", run["id"]))).stopping is None


async def test_no_forged_token_opens_any_path(tmp_path: Path) -> None:
    """Expired, for another audience, unsigned, tampered, `alg: none`."""
    async with keyed(tmp_path) as here:
        for make in BAD.values():
            text = make()
            if not text.isascii() or len(text) > 15_000:
                continue  # no header can carry it
            for row in CLOSED:
                got = await ask(here, row, bearer(text))
                assert got.status_code == 401, (row.path, got.text)


async def test_another_tenants_runs_do_not_exist(tmp_path: Path) -> None:
    """P12: by the owner's very ids, a stranger sees nothing, and changes nothing."""
    async with keyed(tmp_path) as here:
        made = (await here.http.post("/api/runs", json={"input": "my secret"}, headers=bearer(ALICE))).json()
        for row, stranger in product(CLOSED, (bearer(BOB), bearer(token()))):
            if row.method == "POST" and "{" not in row.path:
                continue  # it makes a run of its own, or waits for one
            got = await ask(here, row, stranger, made["id"], made["session"])
            assert "my secret" not in got.text, row.path
            if "{" in row.path:
                assert got.status_code == NOTHING.get(row.path, 404), (row.path, got.text)
                assert made["id"] not in got.text or row.path not in NOTHING
            else:
                assert got.status_code == 200, (row.path, got.text)
                assert made["id"] not in got.text, row.path
        record = await here.store.get(RunKey("alice", made["id"]))
        assert record.state is State.QUEUED
        assert record.stopping is None
        seen = await here.http.get("/api/runs", headers=bearer(ALICE))
        assert [run["id"] for run in seen.json()["runs"]] == [made["id"]]


async def test_whoever_has_a_key_uses_it(tmp_path: Path) -> None:
    """A run through its life, with a key and with a token; ids of two tenants do not meet."""
    async with keyed(tmp_path) as here:
        for headers, tenant in ((bearer(ALICE), "alice"), (bearer(token()), "acme:carol")):
            got = await here.http.post("/api/runs", json={"input": "x", "session": "one"}, headers=headers)
            assert got.status_code == 201, got.text
            holder = await here.claim()
            assert holder.key.tenant == tenant
            await holder.append(build.text(0, "hello"))
            await here.complete(holder, "hello")
            text = (await here.http.get(f"/api/runs/{got.json()['id']}/events", headers={**SSE, **headers})).text
            assert "run.completed" in text
            seen = await here.http.get("/api/sessions", headers=headers)
            assert [each["id"] for each in seen.json()["sessions"]] == ["one"]
            found = (await here.http.get("/api/sessions/one", headers=headers)).json()
            assert {message["run"] for message in found["messages"]} == {got.json()["id"]}


async def test_a_key_that_only_reads_changes_nothing(tmp_path: Path) -> None:
    """403 with the scope that is missing."""
    async with keyed(tmp_path) as here:
        made = (await here.http.post("/api/runs", json={"input": "x"}, headers=bearer(ALICE))).json()
        assert (await here.http.get(f"/api/runs/{made['id']}", headers=bearer(READER))).status_code == 200
        for row in CLOSED:
            if row.method not in ("GET", "HEAD"):
                got = await ask(here, row, bearer(READER), made["id"], made["session"])
                assert got.status_code == 403, row.path
                assert "forbidden_scope" in got.text
        scoped = bearer(token(scope="read"))
        assert (await here.http.post("/api/runs", json={"input": "x"}, headers=scoped)).status_code == 403
        assert (await here.http.get("/api/runs", headers=bearer(token(scope="openid")))).status_code == 403


async def test_probes_need_no_key(tmp_path: Path) -> None:
    """A load balancer has none, and a browser shows the page before it has one."""
    async with keyed(tmp_path) as here:
        for path in sorted(OPEN - {"/docs"}):
            assert (await here.http.get(path)).status_code == 200, path


async def test_keys_need_no_loopback_name(tmp_path: Path) -> None:
    """Behind a proxy the Host is the proxy's."""
    async with keyed(tmp_path) as here:
        got = await here.http.get("/api/runs", headers={**bearer(ALICE), "Host": "agents.example"})
        assert got.status_code == 200


async def test_a_page_of_a_listed_origin_reads_answers(tmp_path: Path) -> None:
    """Preflight without a key, the answer with the header that lets a browser read it; others get neither."""
    async with keyed(tmp_path, cors_origins="https://app.example") as here:
        asks = {"Access-Control-Request-Method": "POST", "Access-Control-Request-Headers": "authorization,content-type"}
        got = await here.http.options("/api/runs", headers={"Origin": "https://app.example", **asks})
        assert got.status_code == 200
        assert got.headers["access-control-allow-origin"] == "https://app.example"
        got = await here.http.post(
            "/api/runs", json={"input": "x"}, headers={"Origin": "https://app.example", **bearer(ALICE)}
        )
        assert got.headers["access-control-allow-origin"] == "https://app.example"
        assert "X-Run-Id" in got.headers["access-control-expose-headers"]
        got = await here.http.options("/api/runs", headers={"Origin": "https://evil.example", **asks})
        assert "access-control-allow-origin" not in got.headers
        refused = await here.http.get("/api/runs", headers={"Origin": "https://app.example"})
        assert refused.status_code == 401
        assert refused.headers["access-control-allow-origin"] == "https://app.example", "a page can say why"


@pytest.mark.parametrize("listed", ["*", "app.example", "https://app.example/path", "https://app.example?x"])
def test_an_origin_that_is_none_is_refused(listed: str) -> None:
    """At the start: a wildcard would let in every page."""
    with pytest.raises(access.BadKeys, match="is not an origin"):
        access._origins(listed)


async def test_a_tenant_cannot_ask_more_than_its_rate(tmp_path: Path) -> None:
    """429 with Retry-After; the other tenant is not slowed."""
    async with keyed(tmp_path, tenant_rate_per_s=0.5, tenant_burst=5) as here:
        answers = [await here.http.get("/api/runs", headers=bearer(ALICE)) for _ in range(8)]
        assert [got.status_code for got in answers] == [200] * 5 + [429] * 3
        assert answers[-1].json()["code"] == "rate_limited"
        assert 1 <= int(answers[-1].headers["retry-after"]) <= 2
        assert (await here.http.get("/api/runs", headers=bearer(BOB))).status_code == 200


async def test_a_tenant_cannot_hold_every_connection(tmp_path: Path) -> None:
    """Its streams are counted as long as they last, and are given back when a client goes."""
    async with keyed(tmp_path, tenant_requests=2) as here:
        made = (await here.http.post("/api/runs", json={"input": "x"}, headers=bearer(ALICE))).json()
        path, key = f"/api/runs/{made['id']}/events", f"Authorization: Bearer {ALICE}"
        raws = [await Raw.open(here.server.port) for _ in range(2)]
        for raw in raws:
            await raw.get(path, "Accept: text/event-stream", key)
            await raw.until(b"run.created")
        got = await here.http.get("/api/runs", headers=bearer(ALICE))
        assert (got.status_code, got.json()["code"]) == (429, "rate_limited")
        assert (await here.http.get("/api/runs", headers=bearer(BOB))).status_code == 200
        raws[0].leave()
        for _ in range(200):
            if (await here.http.get("/api/runs", headers=bearer(ALICE))).status_code == 200:
                break
            await asyncio.sleep(0.02)
        else:
            raise AssertionError("a stream whose client is gone is still counted")


async def test_withdrawn_keys_are_refused_at_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Rotation needs no restart: a lost key is a line to delete."""
    monkeypatch.setattr(api_keys, "_LOOK_S", 0.0)
    path = tmp_path / "keys"
    path.write_text(f"alice:{ALICE}\n")
    async with site(tmp_path, api_keys_file=str(path)) as here:
        assert (await here.http.get("/api/runs", headers=bearer(ALICE))).status_code == 200
        path.write_text("")
        assert (await here.http.get("/api/runs", headers=bearer(ALICE))).status_code == 401
        assert (await here.http.get("/api/runs")).status_code == 401, "no key at all is not the same as keyless"


async def test_keys_that_cannot_be_read_are_said_and_the_old_ones_hold(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """/readyz stays ready, as whoever could enter still can, and says what is wrong."""
    monkeypatch.setattr(api_keys, "_LOOK_S", 0.0)
    path = tmp_path / "keys"
    path.write_text(f"alice:{ALICE}\n")
    settings = Settings(
        port=0, in_process=True, store=f"sqlite:///{tmp_path}/h.db", api_keys_file=str(path), profile="production"
    )
    async with (
        Runtime(settings, ["tests.startup.agents:good"], log=Log(stream=io.StringIO())) as runtime,
        httpx2.AsyncClient(base_url=runtime.url) as http,
    ):
        path.write_text("alice\n")
        assert (await http.get("/api/runs", headers=bearer(ALICE))).status_code == 200
        part = (await http.get("/readyz", headers=bearer(ALICE))).json()["parts"]["access"]
        assert part["ok"] is True
        assert "line 1 is not name:key" in part["why"]
        path.write_text(f"alice:{ALICE}\n")
        assert (await http.get("/api/runs", headers=bearer(ALICE))).status_code == 200
        assert "access" not in (await http.get("/readyz", headers=bearer(ALICE))).json()["parts"]


async def test_what_is_logged_holds_no_key(tmp_path: Path) -> None:
    """Neither a key that was right nor one that was wrong: logs are read by more people than keys."""
    async with keyed(tmp_path) as here:
        mine = token()
        for secret in (ALICE, "wrong-secret", mine):
            await here.http.get("/api/runs", headers=bearer(secret))
        await here.http.get(f"/api/runs/{json.dumps(time.time())}", headers=bearer(ALICE))
        said = here.lines.getvalue()
        assert not any(secret in said for secret in (ALICE, "wrong-secret", mine))
        assert ALICE not in repr(here.settings)
        assert ALICE not in here.settings.model_dump_json()

"""WebSockets with keys: browsers set no header, tokens end while a socket lives, and foreign pages may try."""

import time
from pathlib import Path

import pytest
from websockets.exceptions import ConnectionClosed

from holdfast.gateway import api_keys
from tests.access.support import ALICE, BOB, READER, bearer, keyed, token
from tests.gateway.support import site
from tests.ws.support import RawSocket, socket

pytestmark = pytest.mark.timeout(60)


@pytest.mark.parametrize("secret", [ALICE, "token"])
async def test_a_key_comes_in_a_header_or_a_subprotocol(tmp_path: Path, secret: str) -> None:
    """`new WebSocket(url, ["holdfast.v1", "bearer." + key])` is all that a browser can do."""
    async with keyed(tmp_path) as here:
        secret = token() if secret == "token" else secret
        subject = "alice" if secret == ALICE else "carol"
        async with socket(here.url, additional_headers=bearer(secret)) as client:
            assert client.ready["subject"] == subject
        async with socket(here.url, subprotocols=["holdfast.v1", f"bearer.{secret}"]) as client:
            assert client.ready["subject"] == subject
            assert (await client.ask("start", input="x", subscribe=False))["op"] == "ack"


@pytest.mark.parametrize(
    "header", [None, "Authorization: Bearer wrong", "Sec-WebSocket-Protocol: holdfast.v1, bearer.wrong"]
)
async def test_a_stranger_is_closed_with_1008(tmp_path: Path, header: str | None) -> None:
    """With a reason: a browser shows nothing else."""
    async with keyed(tmp_path) as here:
        client = await RawSocket.open(here.server.port, "", *([header] if header else []))
        code, reason = await client.closed()
        assert code == 1008
        assert reason.startswith("unauthorized: ")


async def test_another_tenants_runs_do_not_exist(tmp_path: Path) -> None:
    """Neither to follow nor to stop nor to steer."""
    async with keyed(tmp_path) as here:
        async with socket(here.url, additional_headers=bearer(ALICE)) as client:
            run = (await client.ask("start", input="x", subscribe=False))["run"]
        async with socket(here.url, additional_headers=bearer(BOB)) as client:
            for op, more in (("subscribe", {}), ("stop", {}), ("steer", {"input": "x"})):
                answer = await client.ask(op, run=run, **more)
                assert (answer["op"], answer["code"]) == ("error", "unknown_run")


async def test_a_reader_starts_and_stops_nothing(tmp_path: Path) -> None:
    """A scope holds on a socket, too."""
    async with keyed(tmp_path) as here:
        async with socket(here.url, additional_headers=bearer(ALICE)) as client:
            run = (await client.ask("start", input="x", subscribe=False))["run"]
        async with socket(here.url, additional_headers=bearer(READER)) as client:
            assert (await client.ask("subscribe", run=run))["op"] == "ack"
            for op, more in (("start", {"input": "x"}), ("stop", {"run": run}), ("steer", {"run": run, "input": "x"})):
                assert (await client.ask(op, **more))["code"] == "forbidden_scope"


async def test_a_socket_ends_with_its_token(tmp_path: Path) -> None:
    """It says where to resume: the client comes back with a new token and misses nothing."""
    async with keyed(tmp_path, jwt_leeway_s=0) as here:
        async with socket(here.url, additional_headers=bearer(token(exp=int(time.time()) + 2))) as client:
            run = (await client.ask("start", input="x"))["run"]
            with pytest.raises(ConnectionClosed) as caught:
                await client.until(lambda _: False)
        assert caught.value.rcvd is not None
        assert caught.value.rcvd.code == 1008
        assert "the token has expired" in caught.value.rcvd.reason
        got = await here.http.get(f"/api/runs/{run}", headers=bearer(token()))
        assert got.json()["state"] == "queued", "the run is not the socket's"


async def test_a_socket_ends_with_its_key(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Withdrawn while it is open."""
    monkeypatch.setattr(api_keys, "_LOOK_S", 0.0)
    path = tmp_path / "keys"
    path.write_text(f"alice:{ALICE}\nbob:{BOB}\n")
    async with (
        site(tmp_path, api_keys_file=str(path)) as here,
        socket(here.url, additional_headers=bearer(ALICE)) as mine,
        socket(here.url, additional_headers=bearer(BOB)) as other,
    ):
        path.write_text(f"bob:{BOB}\n")
        with pytest.raises(ConnectionClosed) as caught:
            await mine.read()
        assert "was withdrawn" in caught.value.rcvd.reason
        assert (await other.ask("ping"))["op"] == "pong"


@pytest.mark.parametrize(
    ("origin", "enters"),
    [("https://app.example", True), ("own", True), ("https://evil.example", False), ("null", False)],
)
async def test_a_page_of_elsewhere_opens_no_socket(tmp_path: Path, origin: str, enters: bool) -> None:
    """A browser asks nobody before it opens one, whatever the page: the server looks."""
    async with keyed(tmp_path, cors_origins="https://app.example") as here:
        origin = f"http://localhost:{here.server.port}" if origin == "own" else origin
        url = here.url.replace("127.0.0.1", "localhost")
        if enters:
            async with socket(url, additional_headers=bearer(ALICE), origin=origin) as client:
                assert (await client.ask("ping"))["op"] == "pong"
        else:
            key = f"Authorization: Bearer {ALICE}"
            client = await RawSocket.open(here.server.port, "", f"Origin: {origin}", key)
            code, reason = await client.closed()
            assert code == 1008
            assert reason.startswith("forbidden_origin")


async def test_operations_count_against_the_rate(tmp_path: Path) -> None:
    """A socket is no way around the limit; pings are free."""
    async with (
        keyed(tmp_path, tenant_rate_per_s=0.5, tenant_burst=3, tenant_requests=1) as here,
        socket(here.url, additional_headers=bearer(ALICE)) as client,
    ):
        answers = [await client.ask("start", input="x", subscribe=False) for _ in range(5)]
        assert [answer["op"] for answer in answers] == ["ack"] * 3 + ["error"] * 2
        assert answers[-1]["code"] == "rate_limited"
        assert (await client.ask("ping"))["op"] == "pong"
        second = await RawSocket.open(here.server.port, "", f"Authorization: Bearer {ALICE}")
        code, reason = await second.closed()
        assert code == 1013
        assert reason.startswith("rate_limited")

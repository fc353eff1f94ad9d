"""The counters say what happened, and what the model received."""

import asyncio
import json

from holdfast.rehearsal import RehearsalServer
from holdfast.rehearsal.stats import REPEATS_MAX, Stats
from tests.rehearsal.support import ask, connected, eventually, play, request, request_bytes, stats


async def test_each_request_is_counted_once_where_it_ended(server: RehearsalServer) -> None:
    """Faults are answers too: what the script asked for is finished, not disconnected."""
    for script in ("!say hi", "!status code=500", "!close after=1", "!truncate after=1", "!nonsense"):
        await play(server, script)
    seen = await stats(server)
    assert (seen["requests"], seen["finished"], seen["open"], seen["client_disconnects"]) == (5, 5, 0, 0)
    assert seen["last_disconnect_ms"] is None


async def test_models_and_stats_are_not_counted(server: RehearsalServer) -> None:
    """A readiness probe of a server does not look like a run."""
    models = await request(server, "GET", "/v1/models")
    assert [model["id"] for model in models.json["data"]] == ["rehearsal"]
    assert (await stats(server))["requests"] == 0


async def test_reset_keeps_what_is_open(server: RehearsalServer) -> None:
    """Between two tests the counters are emptied; an answer that still runs is still open."""
    await play(server, "!say hi")
    async with connected(server) as (_, writer):
        writer.write(request_bytes("POST", "/v1/chat/completions", json.dumps(ask("!stall for=60")).encode()))
        await eventually(server, lambda seen: seen["open"] == 1)
        after = (await request(server, "DELETE", "/_stats")).json
        assert (after["requests"], after["finished"], after["open"], after["last_request"]) == (0, 0, 1, None)
        writer.close()
        assert (await eventually(server, lambda seen: seen["open"] == 0))["client_disconnects"] == 1


async def test_open_requests_are_named_by_their_prompts(server: RehearsalServer) -> None:
    """With many runs at once, each can see when its own connection was closed."""
    async with connected(server) as (_, writer):
        writer.write(request_bytes("POST", "/v1/chat/completions", json.dumps(ask("mine", "!stall for=60")).encode()))
        await eventually(server, lambda seen: seen["open"] == 1)
        assert (await stats(server, "?open=1"))["open_prompts"] == ["mine\n!stall for=60"]
        writer.close()
        await eventually(server, lambda seen: seen["open"] == 0)
    assert (await stats(server, "?open=1"))["open_prompts"] == []
    assert "open_prompts" not in await stats(server)


async def test_reset_forgets_the_times_of_a_status(server: RehearsalServer) -> None:
    """The same test can run twice against one server."""
    script = ("!status code=429 times=1", "!say ok")
    assert [(await play(server, *script)).status for _ in range(2)] == [429, 200]
    await request(server, "DELETE", "/_stats")
    assert (await play(server, *script)).status == 429


async def test_last_requests_show_what_the_model_received(server: RehearsalServer) -> None:
    """Users check tools, history and settings where they arrive."""
    for number in range(22):
        await play(server, "!say hi rate=100000", temperature=number)
    plain, full = await stats(server), await stats(server, "?requests=1")
    assert plain["last_request"]["temperature"] == 21
    assert "last_requests" not in plain
    assert [kept["temperature"] for kept in full["last_requests"]] == list(range(2, 22))


async def test_large_request_is_kept_by_its_size_only(server: RehearsalServer) -> None:
    """The memory that twenty requests may take is bounded."""
    await play(server, "!say hi", padding="x" * 300_000)
    kept = (await stats(server))["last_request"]
    assert kept["truncated"] is True
    assert kept["bytes"] > 300_000


async def test_open_counts_a_request_from_its_first_byte(server: RehearsalServer) -> None:
    """Before headers, before its body is complete: a request that is not ended is open."""
    async with connected(server) as (reader, writer):
        asked = request_bytes("POST", "/v1/chat/completions", json.dumps(ask("!say hi")).encode())
        writer.write(asked[:-5])
        await eventually(server, lambda seen: seen["open"] == 1)
        writer.write(asked[-5:])
        async with asyncio.timeout(2):
            assert b"hi" in await reader.read()
        await eventually(server, lambda seen: seen["open"] == 0 and seen["finished"] == 1)


def test_memory_of_repeated_messages_is_bounded() -> None:
    """A server that runs for weeks forgets the least recent."""
    counters = Stats()
    for number in range(REPEATS_MAX + 1):
        assert counters.repeat(str(number), 1) == 0
    assert counters.repeat("0", 1) == 0
    assert counters.repeat(str(REPEATS_MAX), 1) == 1

"""Starting, stopping and failing to start."""

import asyncio
import json
import signal
import socket
import sys

import pytest

from holdfast.rehearsal import CannotListen, RehearsalServer, create_app
from tests.rehearsal.support import ask, connected, eventually, play, request_bytes

ALONE = """
import sys
from holdfast.rehearsal import run
run(port=0, on_ready=lambda server: print(server.port, flush=True))
"""


async def test_port_0_takes_a_free_port_and_says_which() -> None:
    """Two tests at once never share a server."""
    async with RehearsalServer() as one, RehearsalServer() as two:
        assert one.port != two.port
        assert one.url == f"http://127.0.0.1:{one.port}/v1"
        assert (await play(two, "!say hi")).text == "hi"


async def test_port_of_a_server_that_is_not_started_is_an_error() -> None:
    """Nobody connects to port 0."""
    with pytest.raises(RuntimeError, match="call start"):
        _ = RehearsalServer().port


async def test_busy_port_is_an_error_with_a_remedy(server: RehearsalServer) -> None:
    """The most common trouble of a first start explains itself."""
    with pytest.raises(CannotListen) as caught:
        await RehearsalServer(port=server.port).start()
    assert str(caught.value) == (
        f"cannot listen on 127.0.0.1:{server.port}: the port is taken; stop what listens there, "
        "or choose another with --port (0 takes a free one)"
    )


@pytest.mark.parametrize(
    ("host", "port", "says"),
    [("127.0.0.1", 70_000, "from 0 to 65535"), ("203.0.113.1", 0, "no interface has this address")],
)
async def test_impossible_address_is_an_error_with_a_remedy(host: str, port: int, says: str) -> None:
    """Whatever is wrong with the address is said before anything runs."""
    with pytest.raises(CannotListen, match=says):
        await RehearsalServer(host, port).start()


async def test_port_can_be_taken_again_at_once() -> None:
    """A restart does not wait for the kernel, also after connections were cut."""
    first = RehearsalServer()
    await first.start()
    port = first.port
    async with connected(first) as (_, writer):
        writer.write(request_bytes("POST", "/v1/chat/completions", json.dumps(ask("!stall for=60")).encode()))
        await eventually(first, lambda seen: seen["open"] == 1)
        await first.stop()
    async with RehearsalServer(port=port) as second:
        assert (await play(second, "!say hi")).text == "hi"


@pytest.mark.parametrize("script", ["!slow_headers for=60", "!stall after=0 for=60", "!tokens n=1000000 rate=1000000"])
async def test_stop_cuts_open_answers_and_is_quick(script: str, caplog: pytest.LogCaptureFixture) -> None:
    """A model server that goes down takes its streams with it, also one whose client does not read."""
    server = RehearsalServer()
    await server.start()
    async with connected(server) as (reader, writer):
        reader._transport.pause_reading()
        writer.write(request_bytes("POST", "/v1/chat/completions", json.dumps(ask(script)).encode()))
        await eventually(server, lambda seen: seen["open"] == 1)
        started = asyncio.get_running_loop().time()
        await server.stop()
        assert asyncio.get_running_loop().time() - started < 4
    assert server.app.stats.open == 0
    assert [record.getMessage() for record in caplog.records if record.exc_info] == []
    await server.stop()


async def test_server_starts_again_after_stop() -> None:
    """One object can be a server that fails and comes back."""
    server = RehearsalServer()
    for _ in range(2):
        async with server:
            assert (await play(server, "!say hi")).text == "hi"


async def test_signals_of_the_loop_stay_with_their_owner() -> None:
    """A server inside another program leaves that program's signal handlers alone."""
    before = signal.getsignal(signal.SIGTERM), signal.getsignal(signal.SIGINT)
    async with RehearsalServer():
        assert (signal.getsignal(signal.SIGTERM), signal.getsignal(signal.SIGINT)) == before


async def test_app_starts_and_stops_under_any_asgi_server() -> None:
    """`create_app` speaks lifespan, which servers ask for before the first request."""
    incoming = iter([{"type": "lifespan.startup"}, {"type": "lifespan.shutdown"}])
    sent = []

    async def receive():
        return next(incoming)

    async def send(message):
        sent.append(message["type"])

    await create_app()({"type": "lifespan"}, receive, send)
    assert sent == ["lifespan.startup.complete", "lifespan.shutdown.complete"]
    with pytest.raises(ValueError, match="speaks http only"):
        await create_app()({"type": "websocket"}, receive, send)


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
async def test_run_serves_until_a_signal_and_exits_0_in_silence(number: signal.Signals) -> None:
    """`holdfast rehearse` ends at once and without a trace, also while an answer is open."""
    pipe = asyncio.subprocess.PIPE
    process = await asyncio.create_subprocess_exec(sys.executable, "-c", ALONE, stdout=pipe, stderr=pipe)
    try:
        async with asyncio.timeout(8):
            assert process.stdout is not None
            port = int(await process.stdout.readline())
            with socket.create_connection(("127.0.0.1", port)) as client:
                body = json.dumps(ask("!stall after=1 for=60")).encode()
                client.sendall(request_bytes("POST", "/v1/chat/completions", body))
                client.settimeout(5)
                assert client.recv(1000)
                process.send_signal(number)
                _, errors = await process.communicate()
    finally:
        if process.returncode is None:
            process.kill()
    assert process.returncode == 0
    assert errors == b""

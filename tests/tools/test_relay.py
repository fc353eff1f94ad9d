"""The relay between a worker and an MCP server: what passes, what does not, and who is told."""

import json
import random
import subprocess
import sys
import time
from contextlib import closing
from pathlib import Path
from typing import Any

import pytest

from holdfast.tools import relay
from holdfast.tools.relay import Bucket, Lines

LIMIT = 100_000


class Relayed:
    """A relay with a server that is a few lines of Python."""

    def __init__(self, script: str, *command: str) -> None:
        line = [sys.executable, "-I", "-S", relay.__file__, str(LIMIT)]
        line += list(command) or [sys.executable, "-I", "-S", "-c", script]
        pipe = subprocess.PIPE
        self.process = subprocess.Popen(line, stdin=pipe, stdout=pipe, stderr=subprocess.DEVNULL)

    def ask(self, *ids: Any, padding: str = "") -> None:
        for request in ids:
            message = {"jsonrpc": "2.0", "id": request, "method": "tools/call", "params": {"padding": padding}}
            self.process.stdin.write(json.dumps(message).encode() + b"\n")
        self.process.stdin.flush()

    def answer(self) -> dict[str, Any]:
        return json.loads(self.process.stdout.readline())

    def close(self) -> None:
        self.process.stdin.close()
        self.process.stdout.close()
        self.process.wait(8)


@pytest.mark.parametrize("seed", range(5))
def test_lines_come_out_as_they_went_in_however_they_were_cut(seed: int) -> None:
    """A line is a line; a long one is its ends and its length, in bounded memory."""
    chance = random.Random(seed)
    sent = [bytes(chance.choices(b"abc ", k=chance.choice([0, 1, 50, 999, 1000, 1001, 30_000]))) for _ in range(60)]
    stream, lines, got = b"\n".join([*sent, b""]), Lines(1000), []
    while stream:
        n = chance.choice([1, 7, 400, 65_536])
        got += lines.feed(stream[:n])
        stream = stream[n:]
        assert sum(map(len, [*lines._parts, lines._head, lines._tail])) <= 1000 + 2 * relay.EDGE
    assert [size for _, size in got] == [len(line) for line in sent]
    for line, (shown, size) in zip(sent, got, strict=True):
        if size <= 1000:
            assert shown == line
        else:
            assert shown.startswith(line[:500])
            assert shown.endswith(line[-500:])
            assert len(shown) <= 2 * relay.EDGE + 1


def test_a_bucket_lets_a_burst_pass_and_then_its_rate(monkeypatch: pytest.MonkeyPatch) -> None:
    """Twenty notifications at once are news; twenty thousand are not."""
    now = [100.0]
    monkeypatch.setattr(time, "monotonic", lambda: now[0])
    bucket = Bucket(rate=10, burst=5)
    assert [bucket.take() for _ in range(7)] == [True] * 5 + [False] * 2
    now[0] += 0.25
    assert [bucket.take() for _ in range(3)] == [True, True, False]
    now[0] += 60
    assert sum(bucket.take() for _ in range(99)) == 5


@pytest.mark.parametrize("at_end", [False, True])
def test_of_two_calls_the_one_whose_answer_is_too_long_fails(at_end: bool) -> None:
    """JSON has no order: the id may be before fifty megabytes, or behind them."""
    ends = ("", ', "id": 2') if at_end else ('"id": 2, ', "")
    script = f"""
import sys
for n in range(3): sys.stdin.readline()
print('{{"jsonrpc": "2.0", {ends[0]}"result": {{"x": "' + 'y' * 300000 + '"}}{ends[1]}}}')
print('{{"jsonrpc": "2.0", "id": 1, "result": 1}}')
print('{{"jsonrpc": "2.0", "id": "3", "result": 3}}', flush=True)
sys.stdin.read()
"""
    with closing(Relayed(script)) as relayed:
        relayed.ask(1, 2, "3")
        first = relayed.answer()
        assert (first["id"], "mcp_message_bytes" in first["error"]["message"]) == (2, True)
        assert [relayed.answer().get("result") for _ in range(2)] == [1, 3]


@pytest.mark.slow
def test_a_server_that_does_not_read_is_ended_and_the_worker_never_waits() -> None:
    """A full pipe would hold up whoever writes a cancellation into it."""
    with closing(Relayed("import time; time.sleep(60)")) as relayed:
        began = time.monotonic()
        for n in range(20):
            relayed.ask(n, padding="z" * 1_000_000)
        answers = [relayed.answer() for _ in range(17)]
        assert time.monotonic() - began < 8
        assert all("does not read" in answer["error"]["message"] for answer in answers)


def test_a_command_that_is_not_there_is_an_answer(tmp_path: Path) -> None:
    """Not a closed pipe, whose cause nobody knows."""
    with closing(Relayed("", str(tmp_path / "nothing"))) as relayed:
        relayed.ask(1)
        assert "cannot start" in relayed.answer()["error"]["message"]

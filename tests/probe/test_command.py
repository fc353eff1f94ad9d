"""`holdfast probe` as people have it: its exit codes, what it says before it sends anything, and Ctrl-C."""

from __future__ import annotations

import asyncio
import contextlib
import json
import os
import signal
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner

from holdfast.cli import main
from holdfast.probe import Options, Refused, Wire, choose, detect
from tests.cli.live import Server
from tests.environment import clean
from tests.probe import chat_servers, run_servers
from tests.probe.http import Request, Response
from tests.system.support import FULL

OPEN = ("/version", "/v1/models", "/api/workers")

# What takes a second or more because it must: at full size only (HOLDFAST_FULL=1).
LONG = {
    "chat.disconnect",
    "chat.five_one_session",
    "chat.sessions_apart",
    "chat.slow_reader",
    "reader.leaves",
    "reader.slow",
    "resume.live",
    "session.apart",
    "session.five",
}


def probe(*arguments: str):
    return CliRunner().invoke(main, ["probe", *arguments])


def test_list_names_every_scenario_and_sends_nothing():
    """Whoever pays for the model looks before they run it."""
    listed = probe("--list")
    assert listed.exit_code == 0
    assert all(scenario.name in listed.output for scenario in choose([]))
    document = json.loads(probe("--list", "--json", "--only", "chat.normal").stdout)
    assert [scenario["name"] for scenario in document["scenarios"]] == ["chat.normal"]


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        ([], "missing the URL"),
        (["localhost"], "is no address such as http://127.0.0.1:8484"),
        (["http://127.0.0.1:9", "--only", "nope"], "no scenario is named 'nope'"),
        (["http://127.0.0.1:9", "--tool", "sleep 3"], "is no tool call"),
        (["http://127.0.0.1:9", "--timeout", "0"], "--timeout"),
    ],
)
def test_usage_errors_exit_with_2_and_a_remedy(arguments: list[str], words: str):
    """What was typed wrongly is not reported as a failure of a server."""
    found = probe(*arguments)
    assert found.exit_code == 2
    assert words in found.output


def test_server_that_nobody_can_reach_exits_with_3():
    """A pipeline tells a server that is down from one that hangs."""
    found = probe("http://127.0.0.1:9")
    assert found.exit_code == 3
    assert "cannot be reached" in found.output


class Process:
    """The command in a process of its own."""

    def __init__(self, *arguments: str) -> None:
        self.command = [sys.executable, "-m", "holdfast", "probe", *arguments]

    async def __aenter__(self) -> Process:
        pipe = asyncio.subprocess.PIPE
        self.process = await asyncio.create_subprocess_exec(*self.command, stdout=pipe, stderr=pipe, env=clean())
        return self

    async def __aexit__(self, *exc: object) -> None:
        with contextlib.suppress(ProcessLookupError):
            self.process.kill()
        await self.process.communicate()

    async def until(self, words: str) -> str:
        """What it said on standard error, up to a line with these words."""
        said = ""
        async with asyncio.timeout(20):
            while words not in said:
                line = await self.process.stderr.readline()
                assert line, said
                said += line.decode()
        return said

    async def end(self) -> tuple[int, str]:
        async with asyncio.timeout(20):
            out, _ = await self.process.communicate()
        return self.process.returncode, out.decode()


@pytest.mark.slow
@pytest.mark.timeout(60)
async def test_interrupt_ends_it_at_once_with_what_was_found_so_far():
    """Whoever waits for a server that hangs keeps what is known by then."""
    async with (
        chat_servers.NeverAnswers() as server,
        Process(server.url, "--json", "--only", "server.answers", "--only", "chat.normal") as command,
    ):
        said = await command.until("server.answers")
        assert "with at most 2 prompts, and a real model costs money" in said
        os.kill(command.process.pid, signal.SIGINT)
        asked = time.monotonic()
        code, out = await command.end()
    assert time.monotonic() - asked < 5
    document = json.loads(out)
    assert code == 1
    assert (document["ok"], document["complete"], document["cut"]) == (False, False, "interrupted")
    assert [(r["name"], r["result"]) for r in document["results"]] == [("server.answers", "passed")]


class Keyed(run_servers.SoundRuns):
    """Notes the keys that it is sent, and whether it says that it is a Holdfast."""

    def __init__(self, holdfast: bool) -> None:
        super().__init__()
        self.holdfast = holdfast
        self.seen: list[tuple[str, str]] = []

    async def answer(self, request: Request, response: Response) -> None:
        self.seen.append((request.path, request.headers.get("authorization", "")))
        if request.path == "/version" and not self.holdfast:
            await response.whole({}, 404)
        elif request.path in ("/v1/models", "/api/workers") and not self.seen[-1][1]:
            await response.whole({}, 401)
        else:
            await super().answer(request, response)


@pytest.mark.parametrize(
    ("holdfast", "options", "sent"),
    [
        (True, {"holdfast_key": "env"}, {"/version": "", "/v1/models": "", "/api/workers": "Bearer env"}),
        (True, {"holdfast_key": "env", "api_key": "given"}, dict.fromkeys(OPEN, "Bearer given")),
        (False, {"holdfast_key": "env"}, {"/version": "", "/v1/models": ""}),
    ],
)
async def test_key_of_the_environment_goes_to_a_holdfast_only(holdfast: bool, options: dict[str, str], sent: dict):
    """The key of one's own server is nothing for other people's."""
    async with Keyed(holdfast) as server:
        given = Options(server.url, timeout_s=5.0, **options)
        wire = Wire(given.url, given.api_key, given.timeout_s)
        try:
            with contextlib.nullcontext() if holdfast else pytest.raises(Refused, match="--api-key"):
                assert (await detect(wire, given)).agents == ["mini"]
        finally:
            await wire.aclose()
    assert dict(server.seen) == sent


@pytest.mark.slow
@pytest.mark.timeout(120)
def test_demo_passes_every_scenario(tmp_path: Path, figures: Callable[[str, list[str]], None]):
    """Our own server keeps what the kit asks of others, and none of it is skipped."""
    chosen = [s.name for s in choose([]) if FULL or s.name not in LONG]
    server = Server(tmp_path, "demo", "--port", "0")
    try:
        found = probe(server.url, "--json", "--slack", "5", *(f"--only={name}" for name in chosen))
    finally:
        assert server.close() == 0
    document = json.loads(found.stdout)
    figures("holdfast probe, of the demo", _lines(document))
    wrong = [(r["name"], r["result"], r["seen"]) for r in document["results"] if r["result"] != "passed"]
    assert wrong == []
    assert (found.exit_code, document["ok"], document["complete"]) == (0, True, True)
    assert document["detected"]["rehearsal"] is True
    assert [r["name"] for r in document["results"]] == chosen
    assert document["prompts"] <= sum(scenario.prompts for scenario in choose(chosen))


def _lines(document: dict[str, Any]) -> list[str]:
    slowest = sorted(document["results"], key=lambda r: -r["took_ms"])[:3]
    longest = ", ".join(f"{r['name']} {r['took_ms']:.0f} ms" for r in slowest)
    stops = ", ".join(
        f"{r['name']} {r['figures']['terminal_ms']:.0f} ms"
        for r in document["results"]
        if "terminal_ms" in r["figures"]
    )
    return [f"{document['counts']} in {document['took_ms'] / 1000:.1f} s; longest {longest}", f"ended by stop: {stops}"]

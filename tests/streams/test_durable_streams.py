"""Durable Streams: the official suite on the read side, and real logs with the official client."""

from __future__ import annotations

import asyncio
import json
import os
import random
import re
from pathlib import Path
from typing import Any

import pytest

from tests.environment import clean
from tests.streams.node import PACKAGE, node, node_program
from tests.streams.test_ai_sdk import tokens
from tests.streams.writing import served
from tests.system.support import System, full

LISTED = Path(__file__).with_name("conformance.md")
PASSING = 141
LIMIT_S = 150.0

pytestmark = [pytest.mark.slow, pytest.mark.timeout(240)]


def groups() -> str:
    """The groups that the page says are run, as vitest takes them."""
    named = LISTED.read_text().split("## Groups that are run\n")[1].split("##")[0]
    names = [" ".join(name.split()).strip(".") for name in named.split(",")]
    return f"^ ?({'|'.join(names)})"


async def test_official_suite_passes_but_for_what_is_listed(tmp_path: Path) -> None:
    """The protocol's authors judge offsets, caching, long-poll, server-sent events and closure."""
    report = tmp_path / "report.json"
    vitest = ["node_modules/vitest/vitest.mjs", "run", "conformance.test.mjs", "--no-coverage", "-t", groups()]
    program = node_program()
    async with served() as url:
        process = await asyncio.create_subprocess_exec(
            program,
            *vitest,
            *("--reporter=json", f"--outputFile={report}"),
            cwd=PACKAGE,
            env={**clean(), "PATH": os.environ["PATH"], "CONFORMANCE_TEST_URL": url},
            stdout=asyncio.subprocess.PIPE,
            stderr=asyncio.subprocess.STDOUT,
        )
        try:
            async with asyncio.timeout(LIMIT_S):
                out, _ = await process.communicate()
        finally:
            if process.returncode is None:
                process.kill()
    assert report.exists(), out.decode(errors="replace")[-3000:]
    found = [each for suite in json.loads(report.read_text())["testResults"] for each in suite["assertionResults"]]
    judged = {" > ".join([*e["ancestorTitles"], e["title"]]): e for e in found if e["status"] in ("passed", "failed")}
    listed = set(re.findall(r"^- (\S.* > .*)$", LISTED.read_text(), re.MULTILINE))
    assert listed - judged.keys() == set()
    wrong = {name: e["failureMessages"] for name, e in judged.items() if name not in listed and e["status"] == "failed"}
    assert wrong == {}
    assert len(judged) - len(listed) == PASSING


def test_official_client_reads_a_live_log_exactly(url: str, site: System) -> None:
    """Catch-up, server-sent events and long-poll: every event once, in order, the bytes of the log."""
    run = site.run('!think n=3\n!tool look {"at": "é"}\n!tokens n=60 rate=60')
    seen = node("durable_streams.mjs", url, run=run, modes=["sse", "long-poll"])
    log = site.events(run)
    assert seen["sse"]["items"] == seen["long-poll"]["items"] == log
    assert seen["sse"]["closed"] is seen["long-poll"]["closed"] is True
    late = node("durable_streams.mjs", url, run=run, modes=["none", "sse"])
    assert late["none"]["items"] == late["sse"]["items"] == log


def test_cut_anywhere_and_resumed_nothing_is_missing(site: System) -> None:
    """Whatever was read, the offset that came with it leads on: no gap, no duplicate, sorted as text."""
    seed = random.randrange(2**32)
    rng = random.Random(seed)
    for run in [site.run("!tokens n=100 rate=100") for _ in range(full(30, 3))]:
        items: list[dict[str, Any]] = []
        offset, offsets, closed = "-1", list[str](), False
        while not closed:
            path = f"/streams/runs/{run}?offset={offset}&live=sse"
            with site.http.stream(path) as response:
                blocks = response.read(rng.randrange(1, 4000)).decode(errors="ignore").split("\n\n")[:-1]
            said = [(kind, json.loads(data.removeprefix("data:"))) for kind, data in (b.split("\n", 1) for b in blocks)]
            for number, (kind, value) in enumerate(said):
                if kind == "event: control":  # a batch counts with its control event
                    items += said[number - 1][1] if number and said[number - 1][0] == "event: data" else []
                    offset, closed = value["streamNextOffset"], value.get("streamClosed", False)
                    offsets.append(offset)
            if not blocks:  # a batch is longer than what was read of it: catch up in one answer
                items += (page := site.http.get(f"/streams/runs/{run}?offset={offset}"))
                if page:
                    offset = f"{page[-1]['seq']:015d}_{1:09d}"
        log = site.events(run)
        assert items == log, seed
        assert offsets == sorted(offsets)
        for at in range(0, len(log), 7):
            assert site.http.get(f"/streams/runs/{run}?offset={at:015d}_{min(at, 1):09d}") == log[at:], (seed, at)
    assert log[-1]["output"] == tokens(100)


def test_offsets_of_another_log_and_wrong_parameters_are_said(site: System) -> None:
    """An offset that this log never had is 410, what no server gave is 400, writing is 405; never a wrong answer."""
    run = site.run("!say x")
    site.end(run)
    path = f"/streams/runs/{run}"
    for query, status in {
        "?offset=000000000000999_000000001": 410,
        "?offset=000000000000003_000000009": 410,
        "?offset=3": 400,
        "?offset=": 400,
        "?offset=-1&offset=-1": 400,
        "?live=sse": 400,
        "?offset=-1&live=forever": 400,
        "?offset=-1&live=sse&cursor=x": 200,
    }.items():
        assert site.http.ask("GET", path + query)[0] == status, query
    assert [site.http.ask(method, path)[0] for method in ("PUT", "POST", "DELETE")] == [405] * 3

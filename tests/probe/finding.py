"""Runs the kit in this process, against servers of this process."""

from __future__ import annotations

import asyncio
from collections.abc import Iterable
from typing import Any

from holdfast.probe import Options, Probe, Report, Wire, choose, detect
from tests.probe.http import Server

LIMIT_S = 25.0
AT_ONCE = 4


async def found(url: str, *only: str, **options: Any) -> Report:
    """What the kit says of a server; the kit itself may take no longer than a test."""
    given = Options(url, only=only, **{"timeout_s": 1.0, "slack_s": 0.2, "leave_s": 0.3, **options})
    wire = Wire(url, None, given.timeout_s)
    try:
        async with asyncio.timeout(LIMIT_S):
            target = await detect(wire, given)
            probe = Probe(given, wire, target, choose(only))
            await probe.run(lambda result: None)
    finally:
        await wire.aclose()
    return probe.report


def outcomes(report: Report) -> dict[str, str]:
    """Each scenario's outcome by its name."""
    return {result.name: str(result.outcome) for result in report.results}


def failures(report: Report) -> dict[str, str]:
    """What happened in each scenario that failed."""
    return {result.name: result.seen for result in report.results if result.outcome == "failed"}


def all_found(servers: Iterable[tuple[type[Server], str]]) -> dict[str, Report]:
    """What the kit says of each of these, by its class's name, each asked for one scenario; several at a time."""

    async def one(kind: type[Server], scenario: str) -> Report:
        async with few, kind() as server:
            return await found(server.url, scenario, seed=7)

    async def every() -> list[Report]:
        return await asyncio.gather(*(one(kind, scenario) for kind, scenario in pairs))

    few, pairs = asyncio.Semaphore(AT_ONCE), list(servers)
    return dict(zip((kind.__name__ for kind, _ in pairs), asyncio.run(every()), strict=True))

"""A worker whose writing thread has died cannot store anything: its death is the process's, and that is replaced."""

from __future__ import annotations

import time
from contextlib import closing
from pathlib import Path

import pytest

from tests.system.support import System, until

pytestmark = [pytest.mark.slow, pytest.mark.timeout(60)]

AGENT = """
import asyncio
import gc

from holdfast.ports.agent import TextDelta
from holdfast.stores.sqlite.writer import Writer


def explode(wakes):
    raise SystemError("the thread dies of this")


async def saboteur(ctx):
    yield TextDelta(1, "said before")
    if ctx.input == "sabotage":
        await asyncio.sleep(0.2)
        # Not isinstance: that asks lazy modules what they are, and they import themselves.
        for writer in [found for found in gc.get_objects() if type(found) is Writer]:
            writer._publish = [explode]
        yield TextDelta(1, "and after")
        await asyncio.sleep(60)
"""
REPLACED_S = 10.0


def test_a_worker_whose_writer_died_is_replaced(tmp_path: Path) -> None:
    """[READ] the writing thread's death is process death: else every run of that worker would wait for its lease."""
    (tmp_path / "sabotaged.py").write_text(AGENT)
    with closing(System(tmp_path, "sabotaged:saboteur")) as system:
        run = system.run("sabotage", session="a")
        began = time.monotonic()
        record = system.end(run, REPLACED_S)
        took_s = time.monotonic() - began
        assert record["state"] == "failed", record
        assert record["reason"] == "worker_lost", record
        assert system.events(run)[-1]["type"] == "run.failed"
        until(lambda: "code=71" in system.server.log(), "the supervisor names the exit code", REPLACED_S)
        assert system.end(system.run("hello", session="a"), REPLACED_S)["state"] == "completed"
        print(f"ended and replaced {took_s:.1f} s after the prompt")  # noqa: T201

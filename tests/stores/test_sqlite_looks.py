"""What another process has written is found also where its word does not arrive."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from holdfast.ports.store import READY_TOPIC
from holdfast.stores.sqlite import SqliteStore, writer
from holdfast.stores.sqlite.neighbours import Neighbours
from holdfast.testing.build import new_run

LIMIT_S = 20.0


async def becomes(holds: Callable[[], bool], what: str) -> None:
    until = time.monotonic() + LIMIT_S
    while not holds():
        assert time.monotonic() < until, f"not within {LIMIT_S} s: {what}"
        await asyncio.sleep(0.02)


def sees(neighbours: Neighbours) -> bool:
    """Whether it has seen another one: it looks when it publishes, once a second."""
    neighbours.publish(())
    return neighbours.tell


@pytest.mark.timeout(60)
@pytest.mark.parametrize("lost", ["another runtime directory", "a datagram"])
async def test_a_write_that_nobody_tells_of_is_found(
    lost: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A datagram may be dropped, and a shell's XDG_RUNTIME_DIR be another than the service's: prompts must start."""
    monkeypatch.setattr(writer, "_NEW_S", 0.0)
    url = f"sqlite:///{tmp_path}/some.db"
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("XDG_RUNTIME_DIR", ".")  # short, because a socket's path is
    here = await SqliteStore.open(url)
    if lost == "another runtime directory":
        (tmp_path / "other").mkdir()
        monkeypatch.setenv("XDG_RUNTIME_DIR", "other")
    there = await SqliteStore.open(url)
    try:
        own, theirs = here._neighbours, there._neighbours
        assert own is not None
        assert theirs is not None
        if lost == "a datagram":
            await becomes(lambda: sees(own), "it sees the other one")
            monkeypatch.setattr(theirs, "_send", lambda *_: None)
        else:
            assert not sees(own), "it looks often"
        await becomes(lambda: here._writer._version is not None, "it has looked for the first time")
        with here.subscribe(READY_TOPIC) as wake:
            await asyncio.sleep(0)
            await there.create(new_run("s"))
            assert await wake.wait(LIMIT_S)
    finally:
        await there.close()
        await here.close()

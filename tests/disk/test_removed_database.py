"""A database that somebody removes: its server could go on for months, and lose it all at the next start."""

from __future__ import annotations

import signal
from contextlib import closing
from pathlib import Path

import pytest

from tests.system.support import System, until

pytestmark = [pytest.mark.slow, pytest.mark.timeout(90)]


LONG = pytest.mark.chaos  # one of them is shown to every CI


@pytest.mark.parametrize(
    "how", ["removed", pytest.param("moved away", marks=LONG), pytest.param("its write-ahead log removed", marks=LONG)]
)
def test_a_server_whose_database_was_removed_says_so_and_ends(tmp_path: Path, how: str) -> None:
    """P8 and P9: nothing more is promised; who comes after the server begins with what is at that path."""
    with closing(System(tmp_path, "--profile", "dev")) as system:
        run = system.run("!tokens n=40 rate=20", session="s")
        system.until_text(run, "t3 ")
        files = list(tmp_path.glob("holdfast.db*"))
        if how == "moved away":
            system.store.rename(tmp_path / "elsewhere.db")
        for path in files:
            if (how == "removed" and path.suffix != ".lock") or (how[:3] == "its" and path.name.endswith("-wal")):
                path.unlink(missing_ok=True)
        until(lambda: system.seen(run)[-1]["type"] == "run.completed", "what runs may end")
        assert system.server.wait(20) == 1
        assert "was removed or replaced while it was in use" in system.server.log()
        system.start()
        system.prompt_works("s")
        system.server.signal(signal.SIGTERM)
        assert system.server.wait(20) == 0

"""A live server whose disk is filled by somebody else: runs end and say why, nothing is lost, and it goes on again."""

from __future__ import annotations

import json
import sqlite3
import time
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path
from typing import Any

import pytest

from holdfast.stores.sqlite.checkpoints import frames_in
from tests.disk.small_disk import Filler
from tests.system.support import TERMINAL, Http, System, Watch, until

pytestmark = [pytest.mark.root, pytest.mark.slow, pytest.mark.timeout(60)]

RUNS = 12
END_S = 8.0
SAY_S = 2.0
AGAIN_S = 8.0
TICKING = json.dumps({"n": 100_000, "seconds": 600.0, "size": 300})


class OnSmallDisk(System):
    """A server whose database is on another disk than its logs."""

    def __init__(self, directory: Path, disk: Path) -> None:
        self.disk = disk
        super().__init__(directory, "agents_under_test:ticker")

    @property
    def store(self) -> Path:
        return self.disk / "holdfast.db"

    def ready(self) -> tuple[int, dict[str, Any]]:
        return self.http.ask("GET", "/readyz", limit_s=5)


@pytest.fixture
def served(tmp_path: Path, disk: Path) -> Iterator[OnSmallDisk]:
    with closing(OnSmallDisk(tmp_path, disk)) as served:
        yield served
        lengths = {path.name: path.stat().st_size for path in disk.iterdir()}
        print(lengths, "frames", frames_in(f"{served.store}-wal"))  # noqa: T201 - both for a failure
        print(served.logs())  # noqa: T201


def refused(http: Http, path: str, body: Any) -> dict[str, Any]:
    began = time.monotonic()
    status, problem = http.ask("POST", path, body)
    assert (status, problem["code"]) == (503, "store_unavailable"), problem
    assert time.monotonic() - began < SAY_S
    assert "disk" in problem["detail"]
    assert "is full" in problem["detail"]
    assert "MB" in problem["remedy"]
    return problem


def integrity(database: Path) -> str:
    with closing(sqlite3.connect(database, timeout=5)) as conn:
        return conn.execute("PRAGMA integrity_check").fetchone()[0]


def test_a_full_disk_ends_runs_loses_nothing_and_is_over_when_space_returns(served: OnSmallDisk, disk: Path) -> None:
    """P9: what was acknowledged is there, what could not be stored is said, and nobody has to restart anything."""
    runs = [served.run(TICKING, session=f"s{n}") for n in range(RUNS)]
    watches = [Watch(served, run) for run in runs]
    until(lambda: all(len(w.events) > 20 for w in watches), "every run streams")
    queue = served.run("!say never", session="s0", on_busy="enqueue")

    filler = Filler(disk)
    filler.fill()
    filled_at = time.monotonic()
    records = {run: served.end(run, END_S) for run in runs}
    took_s = time.monotonic() - filled_at
    assert [(r["state"], r["reason"]) for r in records.values()] == [("failed", "store_error")] * RUNS
    for watch, run in zip(watches, runs, strict=True):
        seen = watch.end()
        assert served.events(run) == seen
        assert seen[-1]["type"] == "run.failed"
        assert "is full" in seen[-1]["error"]["message"]
        assert "MB" in seen[-1]["error"]["remedy"]

    status, ready = served.ready()
    assert status == 503
    assert "is full" in ready["parts"]["store"]["why"]
    assert served.http.ask("GET", "/livez")[0] == 200
    refused(served.http, "/api/runs", {"input": "hello", "session": "new"})
    assert served.stop(queue)["state"] == "cancelled"
    assert integrity(served.store) == "ok"

    filler.free()
    freed_at = time.monotonic()
    until(lambda: served.ready()[0] == 200, "it is ready again", AGAIN_S)
    print(f"{RUNS} runs ended {took_s:.1f} s after the disk was full, ready {time.monotonic() - freed_at:.1f} s after")  # noqa: T201
    again = served.run(json.dumps({"n": 50}), session="s1")
    assert served.end(again)["state"] == "completed"
    assert integrity(served.store) == "ok"
    assert all(served.events(run)[-1]["type"] in TERMINAL for run in runs)

"""The directory of the wakes of one database: there while somebody is on it, and gone with the last."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import threading
from pathlib import Path

import pytest

from holdfast.stores.sqlite import neighbours
from holdfast.stores.sqlite.neighbours import Neighbours
from holdfast.stores.wakes import Hub
from tests.system.support import until

KILLED = """
import os, signal, sys
from holdfast.stores.sqlite.neighbours import Neighbours
from holdfast.stores.wakes import Hub
Neighbours(sys.argv[1], Hub())
os.kill(os.getpid(), signal.SIGKILL)
"""


@pytest.fixture
def place(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Where the directories are made; short, because a socket's path is."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("XDG_RUNTIME_DIR", ".")
    return tmp_path / "holdfast"


def test_the_last_to_leave_a_database_removes_its_directory(place: Path) -> None:
    """A server that is started for each of a thousand databases does not leave a thousand directories."""
    first, second = Neighbours("a.db", Hub()), Neighbours("a.db", Hub())
    first.close()
    assert len(list(place.glob("*/*"))) == 1, "the second is still heard"
    second.close()
    assert list(place.iterdir()) == []


def test_whoever_was_killed_does_not_keep_the_directory(place: Path) -> None:
    """A name that nobody answers to would keep it for ever."""
    mine = Neighbours("a.db", Hub())
    child = subprocess.run([sys.executable, "-c", KILLED, "a.db"], timeout=30, check=False)
    assert child.returncode == -signal.SIGKILL
    assert len(list(place.glob("*/*"))) == 2
    mine.close()
    assert list(place.iterdir()) == []


def test_whoever_comes_while_the_last_one_leaves_is_heard(place: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The directory that was made is gone before the socket is bound in it: it is made again, not done without."""
    taken = 0
    bind = neighbours.socket.socket.bind

    class Late(neighbours.socket.socket):
        def bind(self, address: object) -> None:
            nonlocal taken
            if taken < 3:
                taken += 1
                Path(str(address)).parent.rmdir()
            bind(self, address)

    monkeypatch.setattr(neighbours.socket, "socket", Late)
    late = Neighbours("a.db", Hub())
    assert not late.attached
    assert taken == 3
    late.close()


def test_a_name_that_a_killed_process_has_left_is_not_taken_for_ones_own(
    place: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """In a container each start has the pid of the last: the new server is heard from its first moment."""
    names = iter([f"{os.getpid()}-1", f"{os.getpid()}-1", f"{os.getpid()}-2"])
    monkeypatch.setattr(neighbours, "_name", lambda: next(names))
    first, second = Neighbours("a.db", Hub()), Neighbours("a.db", Hub())
    assert sorted(path.name for path in place.glob("*/*")) == [f"{os.getpid()}-1", f"{os.getpid()}-2"]
    first.close()
    second.close()
    assert list(place.iterdir()) == []


def test_comers_and_goers_all_hear_each_other(place: Path) -> None:
    """Many at once, none of them without a socket, and at the end nothing is left."""
    deaf: list[int] = []

    def visit(number: int) -> None:
        for _ in range(20):
            each = Neighbours("a.db", Hub())
            if each.attached:
                deaf.append(number)
            each.close()

    visitors = [threading.Thread(target=visit, args=(n,)) for n in range(4)]
    for each in visitors:
        each.start()
    for each in visitors:
        each.join(30)
    until(lambda: not any(each.is_alive() for each in visitors), "all have left")
    assert deaf == []
    assert list(place.iterdir()) == []

"""Tools that run in processes of their own, imported there and by the tests; nothing here is light by chance."""

import json
import os
import signal
import sys
import time
from pathlib import Path

from holdfast.tools import current_call, isolated, progress

WAIT_S = 60.0  # longer than any test


class Broken(Exception):
    """What a tool raises."""


@isolated
def add(a: int, b: int) -> int:
    """Add two numbers."""
    return a + b


@isolated
async def add_soon(a: int, b: int) -> int:
    """Add two numbers, on a loop."""
    return a + b


@isolated
def echo(value):
    """Give back what came."""
    return value


@isolated
def raises() -> None:
    """Fail with an exception of its own."""
    raise Broken("of no use")


@isolated
def leaves() -> None:
    """Call exit."""
    sys.exit(3)


@isolated
def aborts() -> None:
    """Die of a signal, with last words."""
    sys.stderr.write("it was the pump\n")
    os.abort()


@isolated
def no_json() -> object:
    """Return what has no JSON."""
    return {"at": Path()}


@isolated
def huge() -> str:
    """Return more than comes back."""
    return "x" * 2_000_000


@isolated
def says(lines: int, width: int = 10) -> int:
    """Print a lot."""
    for _ in range(lines):
        sys.stdout.write("x" * (width - 1) + "\n")
    return lines


@isolated
def reports(*words: str) -> None:
    """Say how far it is."""
    for word in words:
        progress(word)


@isolated
def whoami() -> list:
    """The call, and who runs it."""
    call = current_call()
    return [call and call.key, os.getpid(), os.getppid()]


@isolated
def descriptors() -> list[str]:
    """Which descriptors are open here."""
    found = []
    for name in os.listdir("/proc/self/fd"):
        try:
            found.append(f"{name} {os.readlink(f'/proc/self/fd/{name}')}")
        except OSError:
            continue  # the one that lists
    return found


@isolated
def generations(journal: str, deaf: bool = True) -> None:
    """Three generations that sleep: a child, a grandchild in a session of its own, and one whose parent is dead."""
    if deaf:
        signal.signal(signal.SIGTERM, signal.SIG_IGN)  # inherited by all
    note(journal)
    if os.fork() == 0:  # the child
        note(journal)
        if os.fork() == 0:  # the grandchild
            os.setsid()
            note(journal)
            if os.fork() == 0:
                if os.fork() == 0:  # an orphan at once
                    os.setpgid(0, 0)
                    note(journal)
                    time.sleep(WAIT_S)
                os._exit(0)
        time.sleep(WAIT_S)
    time.sleep(WAIT_S)


@isolated
def leaves_a_daemon(journal: str) -> str:
    """Return while a process of its own goes on, with the tool's output open."""
    if os.fork() == 0:
        os.setsid()
        note(journal)
        time.sleep(WAIT_S)
    while not Path(journal).exists():
        time.sleep(0.005)
    return "done"


@isolated
def stops_itself(journal: str) -> None:
    """Freeze, so that SIGTERM alone does nothing."""
    note(journal)
    os.kill(os.getpid(), signal.SIGSTOP)
    time.sleep(WAIT_S)


@isolated
def cleans_up(journal: str) -> None:
    """Take SIGTERM as the word to put things in order."""

    def tidy(number, frame):
        note(journal)
        sys.exit(0)

    signal.signal(signal.SIGTERM, tidy)
    note(journal)
    time.sleep(WAIT_S)


def note(journal: str) -> None:
    """One line with this process's number, in one write."""
    line = json.dumps(os.getpid()) + "\n"
    fd = os.open(journal, os.O_WRONLY | os.O_APPEND | os.O_CREAT)
    try:
        os.write(fd, line.encode())
    finally:
        os.close(fd)

"""Stands between a worker and the processes of one tool, and outlives neither: `python -I -S shim.py ...`.

A program of its own, started for each isolated tool, that imports nothing of Holdfast: it is there within a few
milliseconds. It starts the tool in a session of its own, and from then on it waits for one of three things:

- an order on standard input, `stop SECONDS`: SIGTERM to everything that the tool started, SIGKILL so much later;
- the end of standard input, or another parent: the worker is dead, and the same happens at once;
- the end of the tool's process: what it has left behind is ended in the same way.

Why a process and not PR_SET_PDEATHSIG: that follows the thread that started the tool, not the process, and does not
reach grandchildren. On Linux the shim is a subreaper: whoever loses his parent, by a double fork too, becomes its
child, so a walk down from here finds everybody, in whatever group or session. Elsewhere it has the tool's process
group only.

Arguments: REPORT_FD STDIN_FD PASS_FDS KILL_S ARGV...; PASS_FDS (or `-`) go to the tool and are closed here. Reports, a
line each: `started PID`, `failed ERRNO TEXT`, `exited CODE` (minus the number of a signal), and in the end
`gone COUNT`, where COUNT is how many could not be ended.
"""

from __future__ import annotations

import ctypes
import os
import select
import signal
import sys
import time
from contextlib import suppress

SUBREAPER = 36  # PR_SET_CHILD_SUBREAPER
LOOK_S = 0.02  # between two looks while something is being ended
IDLE_S = 0.25  # between two looks at who our parent is
KILL_LIMIT_S = 5.0  # what survives SIGKILL for so long is left, and said
CLEANED = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP, signal.SIGQUIT, signal.SIGPIPE)


class Shim:
    """One tool and what it started."""

    def __init__(self, report: int, kill_s: float) -> None:
        """Take the descriptor for reports, and how long SIGTERM may take where no order says it."""
        self.report = report
        self.kill_s = kill_s
        self.tool = 0
        self.exited = False
        self.childless = False
        self.asked: set[int] = set()  # who has had SIGTERM
        self.parent = os.getppid()
        self.walks = _adopt_orphans()
        self.wake = _wake_on_exit()

    def start(self, stdin: int, argv: list[str]) -> bool:
        """Start the tool; whether that went well."""
        actions = [(os.POSIX_SPAWN_DUP2, stdin, 0), (os.POSIX_SPAWN_CLOSE, stdin)]
        try:
            self.tool = os.posix_spawnp(
                argv[0], argv, os.environ, file_actions=actions, setsid=True, setsigmask=(), setsigdef=CLEANED
            )
        except OSError as error:
            self.say(f"failed {error.errno} {error.strerror}")
            return False
        self.say(f"started {self.tool}")
        return True

    def say(self, line: str) -> None:
        """Report; it may be that nobody listens any more."""
        try:
            os.write(self.report, line.encode() + b"\n")
        except OSError:
            self.report = os.open(os.devnull, os.O_WRONLY)

    def wait(self) -> float:
        """Until something must end: how long SIGTERM may take then."""
        poller = select.poll()
        poller.register(0, select.POLLIN)
        poller.register(self.wake, select.POLLIN)
        while True:
            ready = [fd for fd, _ in poller.poll(IDLE_S * 1000)]
            self.reap()
            if 0 in ready:
                return self.order()
            if self.exited or os.getppid() != self.parent:
                return self.kill_s

    def end(self, kill_s: float) -> int:
        """SIGTERM, and SIGKILL after `kill_s`, until nobody is left; how many are left all the same."""
        began = time.monotonic()
        poller = select.poll()
        poller.register(0, select.POLLIN)
        poller.register(self.wake, select.POLLIN)
        while True:
            self.reap()
            alive = self.alive()
            waited = time.monotonic() - began
            if not alive or waited > kill_s + KILL_LIMIT_S:
                return len(alive)
            for pid in alive:
                self.ask(pid, kills=waited >= kill_s)
            left = LOOK_S if waited >= kill_s else min(LOOK_S, kill_s - waited)
            if 0 in [fd for fd, _ in poller.poll(max(1.0, left * 1000))]:
                poller.unregister(0)  # told while the tool was already ending, or orphaned: the earlier end counts
                kill_s = min(kill_s, waited + self.order())

    def order(self) -> float:
        """How long SIGTERM may take, by the order that is there or, at the end of orders, by the setting."""
        words = os.read(0, 64).split()
        return float(words[1]) if len(words) > 1 else self.kill_s

    def reap(self) -> None:
        """Take the ends of our children, and report the tool's own."""
        with suppress(BlockingIOError):
            os.read(self.wake, 4096)
        while True:
            try:
                pid, status = os.waitpid(-1, os.WNOHANG)
            except ChildProcessError:
                self.childless = True
                return
            if pid == 0:
                return
            self.asked.discard(pid)
            if pid == self.tool:
                self.exited = True
                self.say(f"exited {os.waitstatus_to_exitcode(status)}")

    def alive(self) -> list[int]:
        """Who lives of what the tool started, itself included; where we cannot walk, its group."""
        if self.walks:
            return [] if self.childless else descendants(os.getpid())
        try:
            os.killpg(self.tool, 0)
        except OSError:
            return []
        return [-self.tool]

    def ask(self, pid: int, *, kills: bool) -> None:
        """SIGKILL, or SIGTERM once: for many programs a second one means that they must not clean up."""
        if not kills and pid in self.asked:
            return
        self.asked.add(pid)
        with suppress(OSError):  # it has just ended, or is not ours to end: then it is counted
            os.kill(pid, signal.SIGKILL if kills else signal.SIGTERM)
            if not kills:
                os.kill(pid, signal.SIGCONT)  # one that is stopped cannot end


def descendants(root: int) -> list[int]:
    """Every living process below `root`, by one look at /proc."""
    below: dict[int, list[int]] = {}
    dead = set()
    for name in os.listdir("/proc"):
        if not name.isdigit():
            continue
        try:
            with open(f"/proc/{name}/stat", "rb") as file:
                state, parent = file.read().rpartition(b")")[2].split()[:2]
        except (OSError, ValueError):
            continue  # it has just ended
        below.setdefault(int(parent), []).append(int(name))
        if state in b"ZX":
            dead.add(int(name))
    found: list[int] = []
    rest = [root]
    while rest:
        children = below.get(rest.pop(), [])
        rest += children
        found += children
    return [pid for pid in found if pid not in dead]


def _adopt_orphans() -> bool:
    """Become a subreaper; whether that is possible here."""
    if not sys.platform.startswith("linux") or not os.path.exists("/proc/self/stat"):
        return False
    try:
        return bool(ctypes.CDLL(None).prctl(SUBREAPER, 1, 0, 0, 0) == 0)
    except (AttributeError, OSError):
        return False


def _wake_on_exit() -> int:
    """A descriptor that can be read when a child has ended."""
    readable, writable = os.pipe()
    os.set_blocking(readable, False)
    os.set_blocking(writable, False)
    signal.set_wakeup_fd(writable, warn_on_full_buffer=False)
    signal.signal(signal.SIGCHLD, lambda number, frame: None)
    return readable


def main() -> None:
    """Start the tool, wait, end everything, say so."""
    for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
        signal.signal(number, signal.SIG_IGN)  # the worker's death and its orders end us, nothing else
    report, stdin = int(sys.argv[1]), int(sys.argv[2])
    passed = [int(fd) for fd in sys.argv[3].split(",") if fd != "-"]
    os.set_inheritable(report, False)
    shim = Shim(report, float(sys.argv[4]))
    if not shim.start(stdin, sys.argv[5:]):
        return
    nothing = os.open(os.devnull, os.O_RDWR)
    for fd in (1, 2):  # the tool's alone, so that their end is its end
        os.dup2(nothing, fd)
    for fd in [stdin, *passed]:
        os.close(fd)
    shim.say(f"gone {shim.end(shim.wait())}")
    os._exit(0)


if __name__ == "__main__":
    main()

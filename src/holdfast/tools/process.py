"""A tool's process, and all that it starts, behind a shim: what can be ended, and is known to have ended.

Started with exec, never forked, with no descriptor of the worker's but its own pipes, in a session of its own. The
worker's death ends it, whatever kills the worker: the shim sees its pipe end. See `holdfast.tools.shim`.
"""

from __future__ import annotations

import asyncio
import os
import signal
import subprocess
import sys
from collections.abc import Callable, Mapping, Sequence
from contextlib import ExitStack, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Final

import anyio

from holdfast.aio import settle
from holdfast.ports.probe import Probe, current_probe
from holdfast.tools.calls import current_call
from holdfast.tools.limits import ProcessLimits, process_limits
from holdfast.tools.output import Feed, Pipe

SHIM: Final = Path(__file__).with_name("shim.py")
SEEN_S: Final = 0.5  # beyond the time for SIGTERM, for SIGKILL to be seen
LEFT_BEHIND_S: Final = 0.1  # for what a tool left behind, before its result is handed on
REAP_S: Final = 0.002
REAPS_MAX: Final = 1000

Take = Callable[[bytes], None]

_unreaped: set[subprocess.Popen[bytes]] = set()  # shims whose loop may have ended before they did


class Group:
    """The processes of one call; made by `start_group`."""

    def __init__(self, popen: subprocess.Popen[bytes], orders: int, reports: int, limits: ProcessLimits) -> None:
        """Follow a shim that has just been started."""
        loop = asyncio.get_running_loop()
        self.code: int | None = None  # of the tool's own process; minus the number of a signal
        self.problem: OSError | None = None  # why it could not be started
        self.left = 0  # how many processes could not be ended
        self.exited: asyncio.Future[None] = loop.create_future()
        self.gone: asyncio.Future[None] = loop.create_future()
        self._popen = popen
        self._orders = orders
        self._limits = limits
        self._pid = 0
        self._told = b""
        self._shim_said_gone = False
        self._stopped = False
        self._reaps = 0
        call = current_call()
        self._call = call.call if call is not None else ""
        self._probe: Probe = current_probe()
        self._probe.process_started(self._call)
        self._reports = Pipe(reports, self._take)
        self._reports.ended.add_done_callback(lambda _: self._reap())

    async def finish(self) -> None:
        """Until the tool's own process has ended; a cancellation ends them all, and waits until it is so."""
        try:
            while not self.exited.done():
                await settle({self.exited}, 60.0)
            await settle({self.gone}, LEFT_BEHIND_S)
        except asyncio.CancelledError:
            await self.end()
            raise

    async def end(self) -> None:
        """SIGTERM to all, SIGKILL to whom that does not end in time; returns when they are gone, or should be."""
        kill_s = self._limits.kill_s
        if not self.exited.done():
            self._stopped = True
        with suppress(OSError):
            os.write(self._orders, b"stop %.3f\n" % kill_s)
        loop = asyncio.get_running_loop()
        until = loop.time() + kill_s + SEEN_S
        again: asyncio.CancelledError | None = None
        with anyio.CancelScope(shield=True):  # a limit of anyio's cancels at every turn of the loop
            while not self.gone.done() and loop.time() < until:
                try:
                    await settle({self.gone}, until - loop.time())
                except asyncio.CancelledError as told:  # a stop after a time limit: it is ending already
                    again = told
        if again is not None:
            raise again

    def _take(self, data: bytes) -> None:
        *lines, self._told = (self._told + data).split(b"\n")
        for line in lines:
            word, _, rest = line.decode(errors="replace").partition(" ")
            match word:
                case "started":
                    self._pid = int(rest)
                case "failed":
                    number, _, text = rest.partition(" ")
                    self.problem = OSError(int(number), text)
                case "exited":
                    self.code = int(rest)
                    self._has_exited()
                case "gone":
                    self.left = int(rest)
                    self._shim_said_gone = True
                case _:
                    pass

    def _has_exited(self) -> None:
        if self.exited.done():
            return
        if not self._stopped:
            self._probe.process_ended(self._call, killed=False)
        self.exited.set_result(None)

    def _reap(self) -> None:
        """The shim ends: take its exit, then say that all are gone."""
        self._reaps += 1
        if self._popen.poll() is None and self._reaps < REAPS_MAX:
            asyncio.get_running_loop().call_later(REAP_S, self._reap)
            return
        _unreaped.discard(self._popen)
        if not self._shim_said_gone and self._pid:  # somebody has killed the shim: the group is what we can reach
            with suppress(OSError):
                os.killpg(self._pid, signal.SIGKILL)
        if self._stopped and not self.left:
            self._probe.process_ended(self._call, killed=True)
        self._has_exited()
        with suppress(OSError):
            os.close(self._orders)
        self._limits.leave()
        self.gone.set_result(None)


@dataclass(frozen=True)
class Program:
    """What is started behind a shim."""

    argv: Sequence[str]  # found on PATH; no shell
    out: Take  # takes what it writes to standard output
    err: Take  # takes what it writes to standard error
    stdin: bytes | None = None  # None is nothing at all
    request: bytes | None = None  # sent on a pipe whose number is added to argv, with that of one for the answer
    result: Take | None = None  # takes the answer
    directory: str | None = None  # where it runs; the worker's by default
    env: Mapping[str, str] | None = None  # the worker's by default


async def start_group(program: Program) -> tuple[Group, list[Pipe]]:
    """Start a program behind a shim, once there is a place for it.

    Returns:
        The group, and its pipes: standard output, standard error, the answer.

    Raises:
        ToolQueueTimeout: There was no place in time.
        OSError: Nothing more can be started.
    """
    limits = process_limits()
    await limits.enter()
    try:
        return _start(program, limits)
    except BaseException:
        limits.leave()
        raise


class _Pipes:
    """The pipes between a worker and one tool, closed again where the start fails."""

    def __init__(self) -> None:
        self.theirs = ExitStack()
        self.ours = ExitStack()

    def readable(self) -> tuple[int, int]:
        """One that we read: our end and theirs."""
        here, there = os.pipe()
        self.theirs.callback(os.close, there)
        self.ours.callback(os.close, here)
        return here, there

    def writable(self) -> tuple[int, int]:
        """One that we write: our end and theirs."""
        there, here = os.pipe()
        self.theirs.callback(os.close, there)
        self.ours.callback(os.close, here)
        os.set_blocking(here, False)
        return here, there

    def nothing(self) -> int:
        """For them to read: an end at once."""
        there = os.open(os.devnull, os.O_RDONLY)
        self.theirs.callback(os.close, there)
        return there


def _start(program: Program, limits: ProcessLimits) -> tuple[Group, list[Pipe]]:
    for shim in tuple(_unreaped):
        if shim.poll() is not None:
            _unreaped.discard(shim)
    pipes = _Pipes()
    with pipes.theirs, pipes.ours:
        orders, orders_there = pipes.writable()
        reports, reports_there = pipes.readable()
        reads = [(*pipes.readable(), program.out), (*pipes.readable(), program.err)]
        feeds: list[tuple[int, bytes]] = []
        passed: list[int] = []
        if program.stdin is None:
            stdin_there = pipes.nothing()
        else:
            here, stdin_there = pipes.writable()
            feeds.append((here, program.stdin))
        if program.request is not None and program.result is not None:
            here, there = pipes.writable()
            feeds.append((here, program.request))
            reads.append((*pipes.readable(), program.result))
            passed = [there, reads[-1][1]]
        numbers = [str(fd) for fd in passed]
        arguments = [str(reports_there), str(stdin_there), ",".join(numbers) or "-", str(limits.kill_s)]
        popen = subprocess.Popen(  # arguments, no shell  # nosec B603
            [sys.executable, "-I", "-S", str(SHIM), *arguments, *program.argv, *numbers],
            stdin=orders_there,
            stdout=reads[0][1],
            stderr=reads[1][1],
            pass_fds=[reports_there, stdin_there, *passed],
            cwd=program.directory,
            env=program.env,
            start_new_session=True,
        )
        _unreaped.add(popen)
        pipes.ours.pop_all()
    group = Group(popen, orders, reports, limits)
    for here, data in feeds:
        Feed(here, data, group.gone)
    return group, [Pipe(here, take) for here, _, take in reads]

"""A worker process as its supervisor has it: orders, reports and shared memory, and nothing that waits."""

from __future__ import annotations

import asyncio
import os
import signal
import subprocess
import sys
import time
from collections.abc import Mapping, Sequence
from contextlib import ExitStack, suppress
from typing import Any

import msgspec

from holdfast.app.pipes import GATEWAYS_SIGNALS, Line, LineReader, Pieces, write_line
from holdfast.config import SECRETS, Settings
from holdfast.engine.blame import BlameBoard
from holdfast.ports.agent import AgentInfo


class WorkerProcess:
    """One child, and what it has said."""

    def __init__(self, settings: Settings, specs: Sequence[str], inherited: Sequence[int]) -> None:
        self.agents: list[AgentInfo] = []
        self.name = ""
        self.failed = ""
        self.ready = asyncio.Event()
        self.ended = asyncio.Event()
        self.beat_at = 0.0
        self.tired = ""  # why it takes no new runs, by its own account
        self.tired_at = 0.0
        self._let_go = False
        self.told_at = 0.0
        self.inspections: dict[int, asyncio.Future[Any]] = {}
        self._pieces = Pieces()
        self._start(inherited)
        self._reader = LineReader(self.reports, self._take, self.ended.set)
        self.say({"order": "configure", "settings": settings.model_dump(exclude=set(SECRETS)), "specs": list(specs)})

    def _start(self, inherited: Sequence[int]) -> None:
        """Start the process; where that fails, nothing is left open."""
        with ExitStack() as theirs, ExitStack() as ours:
            orders_r, self.orders = os.pipe()
            theirs.callback(os.close, orders_r)
            ours.callback(os.close, self.orders)
            self.reports, reports_w = os.pipe()
            theirs.callback(os.close, reports_w)
            ours.callback(os.close, self.reports)
            board = BlameBoard.create()
            theirs.callback(os.close, board)
            self.board = BlameBoard(board)
            ours.callback(self.board.close)
            theirs_to_keep = [orders_r, reports_w, board, *inherited]
            # Ctrl-C goes to every process of the terminal: held back until the child has said that it is not meant.
            held_back = signal.pthread_sigmask(signal.SIG_BLOCK, GATEWAYS_SIGNALS)
            theirs.callback(signal.pthread_sigmask, signal.SIG_SETMASK, held_back)
            self._popen = subprocess.Popen(  # our own module  # nosec B603
                [sys.executable, "-m", "holdfast.app.child", *map(str, theirs_to_keep)],
                pass_fds=theirs_to_keep,
                env=_without_secrets(os.environ),
                stdin=subprocess.DEVNULL,
                stdout=sys.stderr,
            )
            os.set_blocking(self.orders, False)
            ours.pop_all()

    @property
    def pid(self) -> int:
        """Its process id."""
        return self._popen.pid

    def say(self, order: Line) -> bool:
        """Give an order; whether it went out."""
        return not self._let_go and write_line(self.orders, order)

    def exited(self) -> bool:
        """Whether the process has ended (and is reaped)."""
        return self._popen.poll() is not None

    def code(self) -> int | None:
        """Its exit code, or minus the signal that ended it."""
        return self._popen.returncode

    def kill(self) -> None:
        """SIGKILL: nothing that it does can prevent this."""
        with suppress(ProcessLookupError):
            self._popen.send_signal(signal.SIGKILL)

    def let_go(self) -> None:
        """Close our ends; a child that still lives sees that."""
        if self._let_go:
            return
        self._let_go = True
        self._reader.close()
        self.board.close()
        with suppress(OSError):
            os.close(self.orders)
        for waiter in self.inspections.values():
            if not waiter.done():
                waiter.set_result(None)

    def _tire(self, why: str) -> None:
        if why and not self.tired:
            self.tired_at = self.beat_at
        self.tired = why

    def _take(self, report: Line) -> None:
        match report.get("report"):
            case "beat" | "working":
                self.beat_at = time.monotonic()
                self._tire(report.get("tired", ""))
            case "ready":
                self.name = report["worker"]
                self.agents = [msgspec.convert(info, AgentInfo) for info in report["agents"]]
                self.ready.set()
            case "failed":
                self.failed = report["why"]
                self.ready.set()
            case "piece":
                whole = self._pieces.add(report)
                if whole is not None:
                    self._take(whole)
            case "inspected":
                waiter = self.inspections.pop(report["id"], None)
                if waiter is not None and not waiter.done():
                    waiter.set_result(report["found"])
            case _:
                pass


def _without_secrets(environ: Mapping[str, str]) -> dict[str, str]:
    """The environment of whoever runs user code: without what lets people in."""
    hidden = {f"HOLDFAST_{name.upper()}" for name in SECRETS}
    return {name: value for name, value in environ.items() if name not in hidden}

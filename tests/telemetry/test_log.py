"""A log that nobody reads, that is closed or full, costs lines and never a run."""

from __future__ import annotations

import fcntl
import os
import socket
import subprocess
import sys
import termios
import threading
import time
from contextlib import suppress

import pytest

from holdfast.telemetry import Log
from holdfast.telemetry.streams import BACKLOG_BYTES, Outlet

LINE = b"x" * 99 + b"\n"
opened: list[Outlet] = []
AT_ONCE_S = 5.0  # generous: what waits for a reader waits for ever


@pytest.fixture(autouse=True)
def pipe():
    ends = os.pipe()
    yield ends
    for outlet in opened:
        outlet.close()
    opened.clear()
    for fd in ends:
        with suppress(OSError):
            os.close(fd)


def make_outlet(fd: int) -> Outlet:
    opened.append(Outlet(fd))
    return opened[-1]


def write(outlet: Outlet, lines: int, line: bytes = LINE) -> float:
    """How long so many lines take."""
    began = time.monotonic()
    for _ in range(lines):
        outlet.write(line)
    return time.monotonic() - began


def read_all(fd: int) -> bytes:
    found = b""
    while chunk := os.read(fd, 65536):
        found += chunk
    return found


@pytest.mark.parametrize("proc", [True, False], ids=["opened anew", "asked first"])
def test_a_pipe_that_nobody_reads_drops_lines_and_counts_them(pipe, proc, monkeypatch):
    """`holdfast serve 2>&1 | less`, and nobody scrolls: the event loop of all runs must not stand still."""
    if not proc:  # another user's pipe, or no Linux
        monkeypatch.setattr(os, "open", refuse)
    outlet = make_outlet(pipe[1])
    assert write(outlet, 20_000) < AT_ONCE_S
    kept = outlet.dropped * len(LINE)
    assert 20_000 * len(LINE) - BACKLOG_BYTES - 70_000 < kept < 20_000 * len(LINE) - BACKLOG_BYTES + 10_000


def refuse(*arguments):
    raise PermissionError(13, "denied")


@pytest.mark.parametrize("proc", [True, False], ids=["opened anew", "asked first"])
def test_a_slow_reader_gets_every_line_in_order(pipe, proc, monkeypatch):
    """A reader that is late for a moment misses nothing: lines wait for it, up to a bound."""
    if not proc:
        monkeypatch.setattr(os, "open", refuse)
    outlet = make_outlet(pipe[1])
    lines = [b"%d %s\n" % (i, b"y" * (i % 300)) for i in range(1500)]
    for line in lines:
        outlet.write(line)
    assert not outlet.idle
    found = b""
    while len(found) < sum(map(len, lines)):
        found += os.read(pipe[0], 4096)
    assert found == b"".join(lines)
    outlet.flush(5)
    assert (outlet.idle, outlet.dropped) == (True, 0)


def test_the_flags_of_a_shared_stream_are_left_alone(pipe):
    """O_NONBLOCK on a shared open file would break whoever else writes to it."""
    before = fcntl.fcntl(pipe[1], fcntl.F_GETFL)
    write(make_outlet(pipe[1]), 20_000)
    assert fcntl.fcntl(pipe[1], fcntl.F_GETFL) == before


def test_a_reader_that_is_gone_costs_lines_only(pipe):
    """EPIPE is no exception for a run."""
    outlet = make_outlet(pipe[1])
    os.close(pipe[0])
    write(outlet, 10)
    assert outlet.dropped == 10


def test_a_socket_that_nobody_reads_does_not_hold_up():
    """systemd gives services a socket as standard error."""
    ours, theirs = socket.socketpair()
    with ours, theirs:
        outlet = make_outlet(ours.fileno())
        assert write(outlet, 20_000) < AT_ONCE_S
        assert outlet.dropped > 0
        assert ours.gettimeout() is None


def test_a_stopped_terminal_does_not_hold_up():
    """Ctrl-S in the terminal of `holdfast serve` freezes the terminal, not the runs."""
    leader, terminal = os.openpty()
    try:
        termios.tcflow(terminal, termios.TCOOFF)
        outlet = make_outlet(terminal)
        assert write(outlet, 5000) < AT_ONCE_S
        assert outlet.dropped > 0
        termios.tcflow(terminal, termios.TCOON)
    finally:
        os.close(leader)
        os.close(terminal)


def test_a_full_disk_costs_lines_only():
    """ENOSPC at every write."""
    with open("/dev/full", "wb", buffering=0) as full:
        outlet = make_outlet(full.fileno())
        write(outlet, 3)
    assert outlet.dropped == 3


def test_many_threads_write_whole_lines(pipe):
    """The heartbeat, the supervisor and the runs write at the same time."""
    outlet, found = make_outlet(pipe[1]), []
    reader = threading.Thread(target=lambda: found.append(read_all(pipe[0])))
    reader.start()
    texts = [b"%d" % i * 60 + b"\n" for i in range(8)]
    writers = [threading.Thread(target=write, args=(outlet, 500, text)) for text in texts]
    for each in writers:
        each.start()
    for each in writers:
        each.join(5)
    outlet.flush(5)
    os.close(pipe[1])
    outlet.close()
    opened.clear()
    reader.join(5)
    assert outlet.dropped == 0
    assert sorted(found[0].splitlines(keepends=True)) == sorted(text for text in texts for _ in range(500))


def program(body: str) -> str:
    return f"import sys, time\nfrom holdfast.telemetry import Log, ensure_descriptors, guard_prints\n{body}"


def test_the_gap_is_said_once_there_is_room_again():
    """A log with lines missing that does not say so is worse than none."""
    body = """
guard_prints()
log = Log()
for i in range(10_000):
    log.write("stream_end", run=f"r_{i}", session="s" * 60)
sys.stdout.write(str(log.dropped)); sys.stdout.flush()
sys.stdin.readline()
log.flush(5)
log.write("after", n=1)
log.flush(5)
"""
    with subprocess.Popen(
        [sys.executable, "-c", program(body)],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
    ) as process:
        dropped = int(os.read(process.stdout.fileno(), 20))
        process.stdin.write(b"\n")
        process.stdin.flush()
        lines = process.stderr.read().decode().splitlines()
        assert process.wait(5) == 0
    assert dropped > 0
    assert [line.split()[0] for line in lines[-2:]] == ["log_dropped", "after"]
    assert lines[-2].endswith(f"lines={dropped}")
    assert len(lines) == 10_000 - dropped + 2


def test_prints_cannot_wait_either():
    """A tool that prints to a pipe that nobody reads would block its worker's loop, and be killed for it."""
    body = """
guard_prints(stdout=True)
for _ in range(5000):
    print("x" * 100)
    print("y" * 100, file=sys.stderr)
sys.__stderr__ = sys.stderr = None
import os
os._exit(7)
"""
    out_r, out_w = os.pipe()
    err_r, err_w = os.pipe()
    try:
        process = subprocess.Popen([sys.executable, "-c", program(body)], stdout=out_w, stderr=err_w)
        assert process.wait(8) == 7
    finally:
        for fd in (out_r, out_w, err_r, err_w):
            os.close(fd)


def test_a_closed_stderr_is_not_given_to_the_database():
    """`2>&-`: the next file that is opened gets the number 2, and would be written our lines into."""
    body = """
ensure_descriptors()
import os, tempfile
with tempfile.NamedTemporaryFile() as file:
    log = Log()
    log.write("fact", n=1)
    assert file.fileno() > 2, file.fileno()
    os.write(1, b"%d %d %d" % (os.stat(file.name).st_size, log.dropped, os.get_inheritable(2)))
"""
    found = subprocess.run(
        ["bash", "-c", 'exec "$0" -c "$1" 2>&-', sys.executable, program(body)],
        stdout=subprocess.PIPE,
        check=True,
        timeout=8,
    )
    assert found.stdout == b"0 0 1"


def test_a_line_is_masked_and_bounded(capsys):
    """The log is read by more people than may have the keys."""
    Log().write("task_failed", error="401 for Authorization: Bearer abcdefgh12345678", big="z" * 20_000)
    line = capsys.readouterr().err
    assert "Bearer [masked]" in line
    assert "abcdefgh" not in line
    assert len(line) < 8200

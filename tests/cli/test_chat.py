"""The conversation in a terminal: answers as they come, Ctrl-C that stops the run, a session to come back to."""

from __future__ import annotations

import contextlib
import fcntl
import json
import os
import pty
import select
import signal
import struct
import subprocess
import sys
import termios
import time

import pytest

LIMIT_S = 8.0


class Terminal:
    """`holdfast chat` as a process of its own, at a terminal or at pipes."""

    def __init__(self, stub, *args, tty=True, page=False, **env):
        command = [sys.executable, "-m", "holdfast", "chat", "--url", stub.url, *args]
        self.out = ""
        if tty:
            self._fd, theirs = pty.openpty()
            fcntl.ioctl(theirs, termios.TIOCSWINSZ, struct.pack("HHHH", 30, 100, 0, 0))
            self.process = subprocess.Popen(
                command if page else [*command, "--plain"], stdin=theirs, stdout=theirs, stderr=theirs,
                start_new_session=True, env={**os.environ, "TERM": "xterm-256color", **env},
            )  # fmt: skip
            os.close(theirs)
            self._in = self._fd
        else:
            self.process = subprocess.Popen(
                command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.STDOUT
            )
            self._fd, self._in = self.process.stdout.fileno(), self.process.stdin.fileno()

    def __enter__(self):
        return self

    def __exit__(self, *exc):
        self.process.kill()
        self.process.wait(5)
        if self._in == self._fd:
            os.close(self._fd)
        else:
            self.process.stdin.close()
            self.process.stdout.close()

    def type(self, text):
        os.write(self._in, text.encode())

    def interrupt(self):
        self.process.send_signal(signal.SIGINT)

    def until(self, text):
        """Read until `text` was printed."""
        end = time.monotonic() + LIMIT_S
        while text not in self.out:
            assert time.monotonic() < end, f"no {text!r} within {LIMIT_S} s in {self.out[-5000:]!r}"
            if select.select([self._fd], [], [], 0.05)[0]:
                self._read()
        return self.out

    def ended(self, within_s):
        """Whether the process ends within this time."""
        with contextlib.suppress(subprocess.TimeoutExpired):
            self.process.wait(within_s)
        return self.process.poll() is not None

    def hang_up(self):
        """End of input: Ctrl-D, or the pipe's other end closed."""
        if self._in == self._fd:
            self.type("\x04")
        else:
            self.process.stdin.close()

    def leave(self):
        """The exit code, once it has ended."""
        code = self.process.wait(LIMIT_S)
        with contextlib.suppress(OSError):
            while self._read():
                pass
        return code

    def _read(self):
        data = os.read(self._fd, 65536)
        self.out += data.decode(errors="replace").replace("\r\n", "\n")
        return data


def piped(stub, text, *args):
    command = [sys.executable, "-m", "holdfast", "chat", "--url", stub.url, *args]
    return subprocess.run(command, input=text, capture_output=True, text=True, timeout=LIMIT_S, check=False)


def test_prompts_from_a_pipe_are_answered_in_one_session(stub):
    """A script talks to an agent as a person does."""
    result = piped(stub, "hello world\n\nand again\n")
    assert result.returncode == 0
    assert result.stdout == "hello world \nand again \n"
    assert [r["session"] for r in stub.runs.values()] == ["s_new", "s_new"]


def test_rehearsal_is_said(stub):
    """P8: nobody may take a scripted answer for a model's."""
    assert piped(stub, "hello\n").stderr.count("rehearsal model") == 1


def test_a_failed_run_says_why_and_fails_the_script(stub):
    """The reason, the error and the remedy are on the screen; the exit code is for the script."""
    result = piped(stub, "fail\n")
    assert result.returncode == 1
    assert "[failed: model_error\n model_connect: nobody answered\n start it]" in result.stdout


def test_json_prints_the_events(stub):
    """The same conversation for a program."""
    lines = piped(stub, "hello\n", "--json").stdout.splitlines()
    assert [json.loads(line)["type"] for line in lines] == ["run.created", "text.delta", "run.completed"]


@pytest.mark.parametrize("tty", [True, False], ids=["terminal", "pipes"])
def test_interrupt_while_streaming_stops_the_run_and_prints_its_receipt(stub, tty):
    """F19: Ctrl-C stops the work, says what was stopped, and the conversation goes on."""
    with Terminal(stub, tty=tty) as terminal:
        terminal.type("slow one\n")
        terminal.until("slow one ")  # with the space: the answer, not the echo
        terminal.interrupt()
        terminal.until("model connection closed after 12 ms")
        assert "[cancelled: stopped" in terminal.out
        assert terminal.process.poll() is None
        terminal.type("next\n")
        terminal.until("next \n> " if tty else "next \n")
        assert terminal.out.count("[cancelled") == 1
        terminal.hang_up()
        assert terminal.leave() == (0 if tty else 1)
    assert stub.requests.count("POST /api/runs/r_1/stop") == 1
    assert stub.requests.count("GET /api/runs/r_1/events") == 1


def test_interrupt_at_the_prompt_leaves_and_names_the_session(stub):
    """Whoever leaves learns how to come back."""
    with Terminal(stub) as terminal:
        terminal.until("> ")
        terminal.type("hello\n")
        terminal.until("[answered by the rehearsal model")
        terminal.until("real model]\n> ")
        # CPython's input() misses a signal between its prompt and its select; a person presses again, and so do we.
        _wait_for(lambda: terminal.interrupt() or terminal.ended(0.5))
        assert terminal.leave() == 0
        assert terminal.out.index("[session s_new]") < terminal.out.index("[answered by")
        assert "holdfast chat --session s_new" in terminal.out


def test_end_of_input_leaves(stub):
    """Ctrl-D is the other way out."""
    with Terminal(stub) as terminal:
        terminal.until("> ")
        terminal.hang_up()
        assert terminal.leave() == 0


def test_two_interrupts_do_not_crash(stub):
    """Whoever presses twice means it once; the second press says how to leave."""
    with Terminal(stub) as terminal:
        stub.stop = lambda run: stub.runs[run]  # a stop that takes its time
        terminal.type("slow one\n")
        _wait_for(lambda: stub.requests.count("GET /api/runs/r_1/events") == 1)
        terminal.interrupt()
        _wait_for(lambda: "POST /api/runs/r_1/stop" in stub.requests)
        terminal.interrupt()
        terminal.until("once more leaves")
        terminal.interrupt()
        assert terminal.leave() == 0
        assert "Traceback" not in terminal.out


def test_session_shows_its_history_and_attaches_to_what_still_runs(stub):
    """A closed laptop costs nothing: the answer is where it was left, and it goes on."""
    stub.messages = [
        {"role": "user", "text": "earlier"},
        {"role": "assistant", "text": "an answer", "interrupted": True},
    ]
    stub.create("slow one", "s_1")
    with Terminal(stub, "--session", "s_1") as terminal:
        terminal.until("> earlier\nan answer\n[interrupted]\n[attached to run r_1")
        terminal.until("slow one ")
        stub.stop("r_1")
        terminal.until("[cancelled: stopped")
        terminal.type("and on\n")
        terminal.until("and on \n")
    assert stub.runs["r_2"]["session"] == "s_1"


def test_a_session_that_does_not_exist_begins(stub):
    """A name of one's own is a fine session id."""
    result = piped(stub, "hello\n", "--session", "s_mine")
    assert result.returncode == 0
    assert "a new session: s_mine" in result.stderr
    assert stub.runs["r_1"]["session"] == "s_mine"


@pytest.mark.slow
@pytest.mark.timeout(40)
def test_the_page_in_a_terminal_stops_with_escape_and_leaves_with_the_terminal_as_it_was(stub):
    """F19, F49: the real program at a real terminal; colours or not, nothing stays switched on behind it."""
    with Terminal(stub, page=True, NO_COLOR="1") as terminal:
        terminal.until("Ask something")
        terminal.type("slow one\r")
        terminal.until("slow one ")
        fcntl.ioctl(terminal._fd, termios.TIOCSWINSZ, struct.pack("HHHH", 24, 60, 0, 0))
        terminal.process.send_signal(signal.SIGWINCH)
        terminal.type("\x1b")
        terminal.until("cancelled: stopped")
        terminal.type("\x1b")
        terminal.type("\x04")
        assert terminal.leave() == 0
        assert "Traceback" not in terminal.out
        assert "resume with: holdfast chat --session s_new" in terminal.out
        assert terminal.out.rindex("\x1b[?1049l") > terminal.out.rindex("\x1b[?1049h")  # the old screen is back
        assert "\x1b[?1000l" in terminal.out  # and the mouse is the terminal's again
    assert stub.requests.count("POST /api/runs/r_1/stop") == 1


@pytest.mark.parametrize("how", [{"TERM": "dumb"}, {"url": "http://127.0.0.1:9"}], ids=["dumb", "unreachable"])
def test_where_no_page_can_be_there_is_none(stub, how):
    """A terminal that cannot show one gets lines; an error is told on the ordinary screen, with its exit code."""
    stub = type("Elsewhere", (), {"url": how.pop("url")}) if "url" in how else stub
    with Terminal(stub, page=True, **how) as terminal:
        if "TERM" in how:
            terminal.until("> ")
            terminal.hang_up()
        assert terminal.leave() == (0 if "TERM" in how else 3)
        assert "\x1b[?1049h" not in terminal.out


def _wait_for(holds):
    end = time.monotonic() + LIMIT_S
    while not holds():
        assert time.monotonic() < end
        time.sleep(0.01)

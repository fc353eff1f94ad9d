"""A conversation in a terminal: the page of `holdfast.tui`, or line by line where there is no terminal for a page.

Line by line, Ctrl-C while an answer streams stops the run: the request goes out on its own thread, and the stream is
read on to its terminal event, so nothing is lost between the two. Ctrl-C at the prompt leaves.
"""

from __future__ import annotations

import contextlib
import os
import signal
import sys
import threading
from types import FrameType, TracebackType
from typing import TYPE_CHECKING, Any, Final, Self

import click

from holdfast.cli.output import print_json
from holdfast.cli.remote import FAILED, Remote, check_id, leave, remote_options
from holdfast.cli.screen import Screen
from holdfast.domain.events import EventType
from holdfast.domain.words import clean, one_line

if TYPE_CHECKING:
    from holdfast.client import Client

_PROMPT: Final = "> "
_STOP_SAID_S: Final = 5.0
_PRESSES_TO_LEAVE: Final = 3
# How long a lone ESC is held back, because it may begin the code of another key. Textual's 100 ms can be felt.
_ESCAPE_MS: Final = "25"


@click.command()
@click.option("--session", callback=check_id, help="Resume this conversation; a new one by default.")
@click.option("--plain", is_flag=True, help="Line by line, without a full-screen page.")
@remote_options
def chat(remote: Remote, session: str | None, plain: bool) -> None:
    """Talk to an agent.

    ESC or Ctrl-C stops the answer; Ctrl-D leaves. Runs go on when the terminal goes away: come back with --session.
    With --plain, and where input or output is no terminal, the conversation is line by line, and Ctrl-C is the only
    key that stops. Input that is not a terminal is taken as one prompt a line; then a run that does not complete makes
    the exit code 1.
    """
    if sys.stdin.isatty():  # also where what started us had turned Ctrl-C off, as a shell does for its background
        signal.signal(signal.SIGINT, signal.default_int_handler)
    if not plain and not remote.as_json and _is_page():
        _show_page(remote, session)
        return
    with remote.client() as client:
        talk = _Talk(remote, client, session)
        try:
            talk.open()
            while (line := _read()) is not None:
                if line.strip():
                    talk.turn(line)
        except KeyboardInterrupt:
            click.echo()
        talk.say_how_to_return()
    if talk.unfinished and not sys.stdin.isatty():
        raise click.exceptions.Exit(FAILED)


def _is_page() -> bool:
    """Whether the terminal can show a page."""
    return sys.stdin.isatty() and sys.stdout.isatty() and os.environ.get("TERM", "dumb") != "dumb"


def _show_page(remote: Remote, session: str | None) -> None:
    """The full-screen page, once the server has answered: an error is better read without a page."""
    os.environ.setdefault("ESCDELAY", _ESCAPE_MS)
    from holdfast.tui import ChatApp

    with remote.client() as client:
        client.sessions(limit=1)
    app = ChatApp(remote.async_client(), session)
    kept = app.run() or session
    if kept:
        click.echo(f"[resume with: holdfast chat --session {kept}]", err=True)
    raise click.exceptions.Exit(app.return_code or 0)


class _Talk:
    """One conversation: its session, and whether any run of it did not complete."""

    def __init__(self, remote: Remote, client: Client, session: str | None) -> None:
        self._as_json = remote.as_json
        self._client = client
        self._session = session
        self._asked_rehearsal = False
        self.unfinished = False

    def open(self) -> None:
        """Show what was said before, and attach to an answer that still streams."""
        from holdfast.client import ApiError

        if self._session is None:
            return
        try:
            view = self._client.session(self._session)
        except ApiError as error:
            if error.code != "unknown_session":
                raise
            self._note(f"a new session: {self._session}")
            return
        if not self._as_json:
            for message in view.get("messages", ()):
                _show_message(message)
        active = view.get("active")
        if active:
            run = active["id"] if isinstance(active, dict) else str(active)
            self._note(f"attached to run {run}, which has not ended")
            with _Interrupts(self._client) as interrupts:
                self._watch(run, interrupts)

    def turn(self, text: str) -> None:
        """Send a prompt and show its answer to the end."""
        from holdfast.client import ApiError

        with _Interrupts(self._client) as interrupts:
            try:
                record = self._client.start(text, session=self._session)
            except ApiError as error:
                if not sys.stdin.isatty():
                    leave(error)
                click.echo(f"holdfast: {error}", err=True)
                return
            if self._session is None and sys.stdin.isatty():
                self._note(f"session {record['session']}")  # at once: who loses the terminal can come back
            self._session = record["session"]
            self._watch(record["id"], interrupts)
        self._say_rehearsal(record["id"])

    def say_how_to_return(self) -> None:
        """Name the session, for whoever sits at a terminal."""
        if self._session and sys.stdin.isatty():
            self._note(f"resume with: holdfast chat --session {self._session}")

    def _watch(self, run: str, interrupts: _Interrupts) -> None:
        screen = Screen(lambda text: click.echo(text, nl=False))

        def interrupted(cause: str, wait_s: float) -> None:
            self._note(f"disconnected ({one_line(cause)}), the run goes on; again in {wait_s:.1f} s")

        interrupts.aim(run)
        kind = ""
        for event in self._client.events(run, on_interrupt=interrupted):
            kind = event["type"]
            if self._as_json:
                print_json(event)
            else:
                screen.show(event)
            if kind == EventType.RUN_WAITING and sys.stdin.isatty() and not self._as_json:
                self._decide(run, event)
        self.unfinished |= kind != EventType.RUN_COMPLETED

    def _decide(self, run: str, event: dict[str, Any]) -> None:
        """Ask y or n about each call; an empty answer leaves the run waiting, for somebody else or for later."""
        from holdfast.client import ApiError

        if self._client.record(run).get("seq") != event.get("seq"):
            return  # it was decided before we came
        decisions: list[dict[str, Any]] = []
        for request in event.get("requests", ()):
            if request.get("kind") == "call":
                self._note(f"{one_line(request['name'])} waits for a result from outside")
                return
            words = f"run {one_line(request['name'])} with {one_line(request.get('args'))}? [y/n] "
            answer = (_read(words) or "").strip().lower()
            if answer not in ("y", "yes", "n", "no"):
                self._note(f"not decided; POST /api/runs/{run}/decisions, or the page, still can")
                return
            decisions.append({"call": request["call"], "approve": answer.startswith("y")})
        try:
            self._client.decide(run, decisions)
        except ApiError as error:
            self._note(f"not decided: {error}")

    def _say_rehearsal(self, run: str) -> None:
        """A rehearsal answer must not pass for a real one; one look is enough, the server does not change."""
        if not self._asked_rehearsal:
            self._asked_rehearsal = True
            if self._client.record(run).get("rehearsal"):
                self._note("answered by the rehearsal model: a script, no real model")

    @staticmethod
    def _note(text: str) -> None:
        click.echo(f"[{text}]", err=True)


class _Interrupts:
    """Ctrl-C while a run streams: the first press stops the run, the third leaves.

    A handler, not KeyboardInterrupt: the reader keeps its place in the stream and shows the end that the stop
    brings. The handler itself writes nothing, because it may have interrupted a write.
    """

    def __init__(self, client: Client) -> None:
        self._client = client
        self._run: str | None = None
        self._presses = 0
        self._threads: list[threading.Thread] = []
        self._before: Any = None

    def __enter__(self) -> Self:
        self._before = signal.signal(signal.SIGINT, self._pressed)
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        signal.signal(signal.SIGINT, self._before)
        for thread in self._threads:
            thread.join(_STOP_SAID_S)

    def aim(self, run: str) -> None:
        """From now on a press stops this run; one that came before does so now."""
        self._run = run
        if self._presses:
            self._spawn(self._stop)

    def _pressed(self, number: int, frame: FrameType | None) -> None:
        self._presses += 1
        if self._presses >= _PRESSES_TO_LEAVE:
            raise KeyboardInterrupt
        if self._presses > 1:
            self._spawn(lambda: click.echo("\n[still stopping; Ctrl-C once more leaves]", err=True))
        elif self._run is not None:
            self._spawn(self._stop)

    def _spawn(self, work: Any) -> None:
        thread = threading.Thread(target=work, name="holdfast-chat-stop", daemon=True)
        self._threads.append(thread)
        thread.start()

    def _stop(self) -> None:
        from holdfast.client import ClientError

        try:
            self._client.stop(str(self._run))
        except ClientError as error:
            click.echo(f"\n[could not stop: {error}]", err=True)


def _read(prompt: str = _PROMPT) -> str | None:
    """The next prompt, or None at the end of the input."""
    if not sys.stdin.isatty():
        line = sys.stdin.readline()
        return line.rstrip("\n") if line else None
    with contextlib.suppress(ImportError):
        import readline  # noqa: F401 - gives input() its line editing
    try:
        return input(prompt)
    except EOFError:
        click.echo()
        return None


def _show_message(message: dict[str, Any]) -> None:
    match message.get("role"):
        case "user":
            click.echo(_PROMPT + clean(message.get("text", "")))
        case "assistant":
            if message.get("text"):
                click.echo(clean(message["text"]))
            if message.get("interrupted"):
                click.echo("[interrupted]")
        case "tool":
            click.echo(f"[{one_line(message.get('name', '?'))}: {message.get('outcome')}]")
        case _:
            pass

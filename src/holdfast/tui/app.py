"""The page: the conversation, a line that says what the run does now, what waits behind it, and the prompt.

It is a reader of run logs like any other. Nothing here waits for the server: each call is a worker of its own, so a
key is answered at once, however slow the server is. Leaving stops nothing.
"""

from __future__ import annotations

import asyncio
import secrets
import time
from collections.abc import Coroutine, Mapping
from typing import Any, ClassVar, Final

from textual import on
from textual.app import App, ComposeResult
from textual.binding import Binding, BindingType
from textual.containers import VerticalScroll
from textual.screen import ModalScreen
from textual.widgets import Static

from holdfast.client import ApiError, AsyncClient, ClientError, Connection, ServerUnreachable
from holdfast.domain.words import age, one_line
from holdfast.tui.dialogs import Behind, Choose, Decide, Decisions
from holdfast.tui.prompt import Prompt
from holdfast.tui.transcript import RunView

_WRITE_S: Final = 0.1
_TICK_S: Final = 0.25
_LOOK_S: Final = 4.0
_LOOKED_AT: Final = 20  # more than may wait behind a run
_SESSIONS: Final = 50
_EVENTS_AT_ONCE: Final = 20
_AGAIN_S: Final = 2.0
_BUSY: Final = {"supersede": "replaces it", "enqueue": "waits behind it", "steer": "is handed to it"}
_KEYS: Final = "Esc stops  ^N new  ^O sessions  ^J new line  PgUp PgDn  ^D leaves, runs go on"
_WELCOME: Final = "Ask something. Close this terminal, or lose the connection: the run goes on, and you find it again."


class ChatApp(App[str]):
    """One conversation at a time; returns the session to come back to, or "" where there was none."""

    TITLE = "holdfast"
    ENABLE_COMMAND_PALETTE = False
    CSS = """
    ToastRack { dock: top; align: right top; margin-top: 1; }
    #head { height: 1; background: $boost; color: $text-muted; padding: 0 1; }
    #said { padding: 1 1 0 1; scrollbar-size-vertical: 1; }
    #welcome { color: $text-muted; }
    #queue { height: auto; max-height: 6; color: $text-muted; padding: 0 1; }
    #live { height: auto; padding: 0 1; color: $text-success; }
    #live.quiet { color: $text-warning; }
    #keys { height: 1; color: $text-muted; padding: 0 1; }
    """
    BINDINGS: ClassVar[list[BindingType]] = [
        Binding("escape", "stop", "stop", priority=False),
        Binding("ctrl+c", "interrupt", "stop or leave", priority=True),
        Binding("ctrl+d", "leave", "leave", priority=True),
        Binding("ctrl+n", "new", "new session", priority=True),
        Binding("ctrl+o", "sessions", "sessions", priority=True),
        Binding("ctrl+t", "busy", "while a run is active", priority=True),
        Binding("ctrl+r", "behind", "edit what waits", priority=True),
        Binding("ctrl+y", "decide", "decide", priority=True),
        Binding("pageup", "page(-1)", "up", priority=True),
        Binding("pagedown", "page(1)", "down", priority=True),
    ]

    def __init__(self, client: AsyncClient, session: str | None = None) -> None:
        """Talk to the server of `client`, and close it at the end."""
        super().__init__()
        self._client = client
        self._session = session or ""
        self._views: dict[str, RunView] = {}
        self._queue: list[Mapping[str, Any]] = []
        self._busy = "supersede"
        self._rehearsal = False
        self._opening = False
        self._tried: tuple[tuple[str, str, str] | None, str] = (None, "")
        self._lost = ""
        self._pressed_at = 0.0
        self._texts: dict[str, str] = {}
        self._lines: dict[str, Static] = {}

    def compose(self) -> ComposeResult:
        """The page, from top to bottom."""
        self._welcome = Static(_WELCOME, id="welcome", markup=False)
        self._said = VerticalScroll(self._welcome, id="said", can_focus=False)
        self._prompt = Prompt()
        yield self._line("head")
        yield self._said
        yield self._line("queue")
        yield self._line("live")
        yield self._prompt
        yield self._line("keys")

    def on_mount(self) -> None:
        """Show what was said before, and attach to what runs."""
        self._prompt.focus()
        self._said.anchor()
        self.set_interval(_WRITE_S, self._write)
        self.set_interval(_TICK_S, self._tick)
        self.set_interval(_LOOK_S, lambda: self._work(self._look(), "look", exclusive=True))
        self._tick()
        if self._session:
            self._work(self._open(self._session), "open", exclusive=True)

    async def on_unmount(self) -> None:
        """Close the connections; runs go on."""
        await self._client.aclose()

    # ---- keys

    def action_stop(self) -> None:
        """Stop the run that is active; with none, nothing."""
        view = self._active()
        if view is None:
            return
        if view.live.stopping:
            self.notify("still stopping: what does not end in time is cut off", markup=False)
            return
        view.live.stopping = True
        self._tick()
        self._work(self._stop(view), "stop")

    def action_interrupt(self) -> None:
        """Ctrl-C: as Esc while a run is active; else it clears the prompt, and twice it leaves."""
        if isinstance(self.screen, ModalScreen):
            _ = self.screen.dismiss(None)
            return
        now, prompt = time.monotonic(), self._prompt
        view = self._active()
        again = now - self._pressed_at < _AGAIN_S
        self._pressed_at = now
        if view is not None and not view.live.stopping:
            self.action_stop()
        elif prompt.text:
            prompt.text = ""
        elif again:
            self.action_leave()
        else:
            self.notify("Ctrl-C once more leaves; runs go on", markup=False)

    def action_leave(self) -> None:
        """Leave; what runs goes on."""
        self.exit(self._session)

    def action_new(self) -> None:
        """A new conversation; what runs in the old one goes on."""
        if len(self.screen_stack) == 1:
            self._work(self._open(""), "open", exclusive=True)

    def action_busy(self) -> None:
        """What a prompt does to an active run."""
        names = list(_BUSY)
        self._busy = names[(names.index(self._busy) + 1) % len(names)]
        self._tick()

    def action_sessions(self) -> None:
        """Choose another session."""
        if len(self.screen_stack) == 1:
            self._work(self._choose(), "choose", exclusive=True)

    def action_decide(self) -> None:
        """Ask again what a waiting run asks."""
        view = self._active()
        if view is not None and view.requests and len(self.screen_stack) == 1:
            self._work(self._decide(view), "decide", exclusive=True)

    def action_behind(self) -> None:
        """Edit or remove a prompt that waits."""
        if self._queue and len(self.screen_stack) == 1:
            self._work(self._change(), "behind", exclusive=True)

    def action_page(self, way: int) -> None:
        """Scroll the conversation."""
        said = self._said
        (said.scroll_page_up if way < 0 else said.scroll_page_down)(animate=False)

    @on(Prompt.Sent)
    def send(self, sent: Prompt.Sent) -> None:
        """A prompt, or the answer to a waiting run's question asked anew."""
        self._prompt.text = ""
        self._work(self._send(sent.text), "send")

    # ---- calls of the server, each a worker

    async def _open(self, session: str) -> None:
        for view in list(self._views.values()):
            _ = view.remove()
        self.workers.cancel_group(self, "follow")
        self._session, self._views, self._queue, self._rehearsal = session, {}, [], False
        self._welcome.display = not session
        self._said.anchor()
        if not session:
            return
        self._opening = True  # until its history stands there, no run of it is new
        try:
            await self._remember(session)
        finally:
            self._opening = False
        await self._look()

    async def _remember(self, session: str) -> None:
        try:
            page = await self._client.session(session)
        except ApiError as error:
            if error.code != "unknown_session":
                raise
            self.notify(f"a new session: {session}", markup=False)
            return
        for message in page["messages"]:
            run = message["run"]
            if run not in self._views:
                await self._show(RunView(run))
                self._views[run].live.ended = True
            self._views[run].remember(message)

    async def _look(self) -> None:
        """Take in what others did: runs that began elsewhere, and what waits."""
        session = self._session
        if not session or self._opening:
            return
        try:
            runs = (await self._client.runs(session=session, limit=_LOOKED_AT))["runs"]
        except ClientError as error:
            self._lost = one_line(str(error))
            raise
        if session != self._session or self._opening:
            return
        self._lost = ""
        self._rehearsal = self._rehearsal or any(record.get("rehearsal") for record in runs)
        self._queue = sorted((r for r in runs if _waits(r)), key=lambda record: record["position"])
        for record in reversed(runs):
            if not _waits(record) and record["id"] not in self._views:
                await self._begin(record["id"], None)

    async def _send(self, text: str) -> None:
        asked = (text, self._session, self._busy)
        if self._tried[0] != asked:  # the same again after no answer is the same run, not a second one
            self._tried = (asked, f"t_{secrets.token_hex(16)}")
        try:
            record = await self._client.start(
                text, session=self._session or None, on_busy=self._busy, idempotency_key=self._tried[1]
            )
        except ClientError:
            prompt = self._prompt
            prompt.text = prompt.text or text  # nothing that was typed is lost
            raise
        self._session, self._tried = record["session"], (None, "")
        self._rehearsal = self._rehearsal or bool(record.get("rehearsal"))
        self._said.anchor()
        view = self._views.get(record["id"])
        if view is not None:
            view.note(f"on its way to the run: {one_line(text)}")
        elif not _waits(record):
            await self._begin(record["id"], text)
        await self._look()

    async def _stop(self, view: RunView) -> None:
        view.wish = False
        try:
            await self._client.stop(view.run)
        except ServerUnreachable:
            view.wish = True
            self.notify("the server cannot be reached; it is told to stop as soon as it is back", markup=False)
        except ClientError:
            view.live.stopping = False
            raise

    async def _begin(self, run: str, text: str | None) -> None:
        view = RunView(run, text)
        await self._show(view)
        self._work(self._follow(view), "follow")

    async def _show(self, view: RunView) -> None:
        self._views[view.run] = view
        self._welcome.display = False
        await self._said.mount(view)

    async def _follow(self, view: RunView) -> None:
        def connection(now: Connection) -> None:
            view.live.connected = now.state not in ("reconnecting", "failed")
            if view.wish and now.state == "live":
                self._work(self._stop(view), "stop")

        number = 0
        async with self._client.follow(view.run, on_state=connection) as events:
            async for event in events:
                view.show(event)
                number += 1
                if number % _EVENTS_AT_ONCE == 0:
                    await asyncio.sleep(0)  # a long log is read anew: keys come first
                if event["type"] in ("run.waiting", "run.decided") and not isinstance(self.screen, Decide):
                    self._work(self._asked(view, event), "decide", exclusive=True)
        await self._look()

    async def _asked(self, view: RunView, event: Mapping[str, Any]) -> None:
        if (await self._client.record(view.run))["seq"] == event["seq"]:  # else it was decided before we came
            await self._decide(view)

    async def _decide(self, view: RunView) -> None:
        requests = list(view.requests)
        if any(each.get("kind") == "call" for each in requests):
            view.note("waits for a result from outside")
            return
        decisions: Decisions | None = await self.push_screen_wait(Decide(requests))
        if decisions is None:
            view.note("not decided: ^Y asks again, and the web page still can")
            return
        still = {each["call"] for each in view.requests}  # somebody else may have decided some of it meanwhile
        if left := [each for each in decisions if each["call"] in still]:
            await self._client.decide(view.run, left)

    async def _change(self) -> None:
        waiting = [await self._client.record(record["id"]) for record in self._queue]  # in lists a long input is cut
        changed = await self.push_screen_wait(Behind([(record["id"], record["input"]) for record in waiting]))
        if changed is None:
            return
        run, text = changed
        try:  # it may have begun meanwhile: then the server says so, and nothing of what runs is stopped
            await self._client.edit(run, text) if text is not None else await self._remove(run)
        finally:
            await self._look()

    async def _remove(self, run: str) -> None:
        record = await self._client.record(run)
        if _waits(record):
            await self._client.stop(run)
        else:
            self.notify("it has begun, or ended, and was not removed; Esc stops what runs", markup=False)

    async def _choose(self) -> None:
        found = (await self._client.sessions(limit=_SESSIONS))["sessions"]
        latest = (await self._client.runs(limit=200))["runs"]
        first = {
            record["session"]: one_line(record["input"].split("\n", 1)[0]) for record in latest
        }  # the oldest stays
        words = [
            (s["id"], f"{age(s['updated_at']):>8} ago  {_state(s):<8} {first.get(s['id'], s['id'])}") for s in found
        ]
        chosen = await self.push_screen_wait(Choose(words))
        if chosen:
            await self._open(chosen)

    def _work(self, call: Coroutine[Any, Any, None], group: str, *, exclusive: bool = False) -> None:
        """Run a call beside the page; what it fails with is said, and the page goes on."""

        async def guarded() -> None:
            try:
                await call
            except ClientError as error:
                if group != "look":
                    self.notify(one_line(str(error)), severity="error", timeout=10, markup=False)

        self.run_worker(guarded(), group=group, exclusive=exclusive, exit_on_error=True)

    # ---- what is on the screen

    def _active(self) -> RunView | None:
        return next((view for view in reversed(self._views.values()) if not view.live.ended), None)

    def _write(self) -> None:
        for view in self._views.values():
            if view.is_mounted:
                view.write()

    def _tick(self) -> None:
        view, now = self._active(), time.time()
        words = ["holdfast", self._session or "new session"]
        if self._rehearsal:
            words.append("REHEARSAL: a script answers, not a model")
        self._set("head", "  ".join(words))
        self._set("keys", _KEYS)
        busy = f"while a run is active, a prompt {_BUSY[self._busy]} (^T)"
        if self._texts.get("busy") != busy:
            self._texts["busy"] = self._prompt.border_subtitle = busy
        waits = [f"waiting {n}. {one_line(record['input'])}" for n, record in enumerate(self._queue, 1)]
        if waits:
            waits[0] += "  (^R edits, removes)"
        self._set("queue", "\n".join(waits))
        self._lines["queue"].display = bool(waits)
        words_now = view.live.words(now) if view else self._lost
        self._set("live", words_now)
        self._lines["live"].display = bool(words_now)
        quiet = view is None or not view.live.connected or (now - view.live.heard > 5 and not view.live.waiting)
        self._lines["live"].set_class(quiet, "quiet")

    def _line(self, name: str) -> Static:
        """A line of the page; kept, because the page is taken down piece by piece while its clock still ticks."""
        self._lines[name] = Static("", id=name, markup=False)
        return self._lines[name]

    def _set(self, name: str, text: str) -> None:
        if self._texts.get(name) != text:  # an update draws the line anew, whatever it says
            self._texts[name] = text
            self._lines[name].update(text)


def _waits(record: Mapping[str, Any]) -> bool:
    return bool(record.get("position")) and record["state"] == "queued"


def _state(session: Mapping[str, Any]) -> str:
    active = session["active"]
    return "" if not active else str(active["state"])

"""`holdfast top`: what works, what runs, and what each run waits on; as a page that follows, or once.

A thread of its own looks each second, so that keys are heard while a server does not answer. A look that fails leaves
the last one on the page, with how old it is, until one succeeds again.
"""

from __future__ import annotations

import datetime as dt
import sys
import threading
import time
from concurrent.futures import ThreadPoolExecutor, wait
from typing import TYPE_CHECKING, Any, Final

import click

from holdfast.cli.output import print_json
from holdfast.cli.remote import Remote, leave, remote_options
from holdfast.cli.top_view import ORDER, Look, fitted, headline, in_order, run_lines, whole_page, worker_lines
from holdfast.domain.words import duration, one_line

if TYPE_CHECKING:
    from holdfast.cli.page import Page
    from holdfast.client import Client, ClientError

_EACH_S: Final = 1.0
_TICK_S: Final = 0.1
_ANSWER_S: Final = 10.0
_STALE_S: Final = 3.0
_LISTED_MAX: Final = 200  # of each state
_INSPECTED_MAX: Final = 50
_AT_ONCE: Final = 8
_INSPECTION_S: Final = 3.0
_LEAVE_S: Final = 0.5
_SAID_S: Final = 5.0
_HELP: Final = "q quits, up and down choose a run, s stops it"


@click.command()
@click.option("--once", is_flag=True, help="Print one plain table and end; so, too, where the output is no terminal.")
@remote_options
def top(remote: Remote, once: bool) -> None:
    """Watch workers and unfinished runs, each with what it waits on.

    It looks each second. q or Ctrl-C leaves; up and down choose a run, and s stops it, after a question. A server that
    goes away is waited for. --json prints one JSON document.
    """
    remote.answer_s = _ANSWER_S  # the page says at once that it waits, and asks anew
    with remote.client() as client:
        look = take_look(client)
        if remote.as_json:
            print_json(look.document())
        elif once or not sys.stdout.isatty():
            click.echo("\n".join(whole_page(look)))
        else:
            _follow(client, look)


def take_look(client: Client) -> Look:
    """Ask for everything that the page shows.

    Raises:
        ClientError: The server did not answer, or refused.
    """
    workers = client.workers()
    pages = {state: client.runs(state=state, limit=_LISTED_MAX) for state in ORDER}
    runs = in_order([record for page in pages.values() for record in page["runs"]])
    counts = {state: f"{len(page['runs'])}{'+' if page.get('next') else ''}" for state, page in pages.items()}
    now = dt.datetime.now(dt.UTC)
    return Look(now, client.url, workers["workers"], workers["agents"], _inspected(client, runs), counts)


def _inspected(client: Client, runs: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """The runs, with why they are not finished where the server says so in time; without those that ended meanwhile."""
    from holdfast.client import ClientError

    pool = ThreadPoolExecutor(_AT_ONCE, thread_name_prefix="holdfast-top-inspect")
    try:
        asked = {record["id"]: pool.submit(client.inspect, record["id"]) for record in runs[:_INSPECTED_MAX]}
        done, _ = wait(asked.values(), _INSPECTION_S)
    finally:
        pool.shutdown(wait=False, cancel_futures=True)
    found = []
    for record in runs:
        task = asked.get(record["id"])
        if task is None or task not in done:
            found.append(record)
            continue
        error = task.exception()
        if error is None:
            inspection = task.result()
            if inspection.get("state") in ORDER:
                found.append({**record, "inspection": inspection})
        elif not isinstance(error, ClientError):
            raise error
    return found


class _Looker:
    """Looks each second in a thread of its own; what it saw last, and what is wrong."""

    def __init__(self, client: Client, look: Look) -> None:
        self._client = client
        self._end = threading.Event()
        self._lock = threading.Lock()
        self._thread = threading.Thread(target=self._run, name="holdfast-top", daemon=True)
        self.look = look
        self.seen_at = time.monotonic()
        self.wrong = ""  # why the last look failed
        self.refused: ClientError | None = None  # no further look would succeed
        self._said = ("", 0.0)  # what became of a stop, and until when it is news
        self._thread.start()

    @property
    def said(self) -> str:
        """What is to be told of a stop."""
        words, until = self._said
        return words if time.monotonic() < until else ""

    def _say(self, words: str) -> None:
        self._said = (words, time.monotonic() + _SAID_S)

    def close(self) -> None:
        """Look no more; bounded."""
        self._end.set()
        self._thread.join(_LEAVE_S)

    def stop(self, run: str) -> None:
        """Stop a run, beside everything else."""
        self._say(f"stopping {run} ..")
        threading.Thread(target=self._stop, args=(run,), name="holdfast-top-stop", daemon=True).start()

    def _stop(self, run: str) -> None:
        from holdfast.client import ClientError

        try:
            record = self._client.stop(run)
        except ClientError as error:
            self._say(f"{run} not stopped: {error}")
        else:
            self._say(f"{run}: {record.get('reason') or 'told to stop'}")

    def _run(self) -> None:
        from holdfast.client import ApiError, ClientError

        while not self._end.wait(_EACH_S):
            try:
                look = take_look(self._client)
            except ApiError as error:
                if not error.retryable:
                    self.refused = error
                    return
                self.wrong = str(error)
            except ClientError as error:
                self.wrong = str(error)
            except Exception as error:  # noqa: BLE001 - shown on the page; a thread must not end in silence
                self.wrong = f"{type(error).__name__}: {error}"
            else:
                self.look, self.seen_at, self.wrong = look, time.monotonic(), ""


def _follow(client: Client, look: Look) -> None:
    try:
        from holdfast.cli.page import Page
    except ImportError:
        raise click.UsageError("a page that follows needs a terminal of Unix; use --once or --json") from None
    looker = _Looker(client, look)
    try:
        with Page() as page:
            _Watching(page, looker).run()
    except KeyboardInterrupt:
        pass
    finally:
        looker.close()
    if looker.refused is not None:
        leave(looker.refused)


class _Watching:
    """The page, the run that is chosen, and a question that waits for its answer."""

    def __init__(self, page: Page, looker: _Looker) -> None:
        self._page = page
        self._looker = looker
        self._chosen = ""
        self._asking = ""

    def run(self) -> None:
        """Draw and hear keys until one of them, or the server for good, ends it."""
        from holdfast.cli.page import END

        while self._looker.refused is None:
            self._page.draw(self._lines(*self._page.size))
            key = self._page.key(_TICK_S)
            if self._asking:
                if key:
                    self._answer(key)
            elif key in ("q", "Q", END):
                return
            elif key in ("up", "down"):
                self._move(-1 if key == "up" else 1)
            elif key == "s" and self._chosen:
                self._asking = self._chosen

    def _answer(self, key: str) -> None:
        run, self._asking = self._asking, ""
        if key in ("y", "Y"):
            self._looker.stop(run)

    def _move(self, by: int) -> None:
        ids = [record["id"] for record in self._looker.look.runs]
        if self._chosen in ids:
            self._chosen = ids[max(0, min(len(ids) - 1, ids.index(self._chosen) + by))]
        elif ids:
            self._chosen = ids[0 if by > 0 else -1]

    def _lines(self, width: int, height: int) -> list[str]:
        from holdfast.cli.page import BOLD, REVERSE

        look = self._looker.look
        workers = fitted(worker_lines(look), width, max(3, height // 3))
        room = max(2, height - len(workers) - 4)
        listed = run_lines(look)
        ids = [record["id"] for record in look.runs]
        if self._chosen not in ids:
            self._chosen = ""
        at = ids.index(self._chosen) + 1 if self._chosen else 0
        first = max(1, at - room + 2)  # the chosen one is always in sight
        shown = fitted([listed[0], *listed[first:]], width, room)
        if at:
            row = at - first + 1
            shown[row] = REVERSE + listed[at][:width]
        shown[0], workers[0] = BOLD + shown[0], BOLD + workers[0]
        page = [headline(look)[:width], *workers, "", *shown, ""]
        return [*page[: max(0, height - 1)], self._status()[:width]]

    def _status(self) -> str:
        looker = self._looker
        if self._asking:
            return f"stop {self._asking}? y stops it, any other key does not"
        old_s = time.monotonic() - looker.seen_at
        if looker.wrong:
            return f"disconnected, trying again; this is {duration(old_s * 1000)} old ({one_line(looker.wrong)})"
        if old_s > _STALE_S:
            return f"the server takes its time; this is {duration(old_s * 1000)} old"
        return looker.said or _HELP

"""Clients of document 4, and its log lines with exactly the fields that DESIGN 8 gives them."""

from __future__ import annotations

import json
import shlex
import threading
import time
from datetime import datetime
from itertools import pairwise
from typing import Any

from tests.system.support import System, frames, until

BLOCKING = "agents_blocking:blocking"
FIELDS = {
    "stream_requested": ["at", "trace", "run", "session"],
    "stream_start": ["at", "trace", "run", "session", "attempt"],
    "stream_cancelled": ["at", "trace", "run", "session", "reason", "by"],
    "prev_stream_finished_cleanly": ["at", "run", "session"],
    "prev_stream_timeout_on_cancel": ["at", "run", "session"],
    "stream_end": ["at", "trace", "run", "session", "state", "reason", "duration_ms"],
    "cleanup_done": ["at", "run"],
}
CLEANLY = "prev_stream_finished_cleanly"
TIMED_OUT = "prev_stream_timeout_on_cancel"

Line = dict[str, str]


def parse(log: str, form: str = "logfmt") -> list[Line]:
    """The stream lines of a log, in order; each has its fields, in their order, and none is empty."""
    found = []
    for text in log.splitlines():
        if form == "json":
            if not text.startswith("{"):
                continue
            line = {k: str(v) for k, v in json.loads(text).items()}
        else:
            event, _, rest = text.partition(" ")
            if event not in FIELDS:
                continue
            line = {"event": event, **dict(pair.split("=", 1) for pair in shlex.split(rest))}
        if line["event"] in FIELDS:
            assert list(line) == ["event", *FIELDS[line["event"]]], text
            assert all(line.values()), text
            found.append(line)
    return found


def lines(system: System, form: str = "logfmt") -> list[Line]:
    """The stream lines that all processes of the server wrote so far."""
    return parse(system.server.log(), form)


def words(found: list[Line], run: str) -> list[str]:
    """What was said of one run."""
    return [line["event"] for line in found if line["run"] == run]


def told(system: System, *runs: str, form: str = "logfmt") -> list[Line]:
    """The lines of a server, once each of `runs` has its last one."""
    until(lambda: all("cleanup_done" in words(lines(system, form), run) for run in runs), "the lines are written", 5)
    return lines(system, form)


def started(found: list[Line], run: str) -> float:
    """Seconds from the request of a run to its start, by its lines."""
    at = {line["event"]: datetime.fromisoformat(line["at"]) for line in found if line["run"] == run}
    return (at["stream_start"] - at["stream_requested"]).total_seconds()


def check_strict(found: list[Line], first: str, second: str, word: str | None) -> None:
    """DESIGN 8 for a supersede: each line once, and all that is said of A's end before B starts."""
    at = {
        (line["event"], line["run"]): number
        for number, line in enumerate(found)
        if line["run"] in (first, second) and line["event"] != "cleanup_done"
    }
    ends = [word] if word else [w for w in (CLEANLY, TIMED_OUT) if (w, first) in at]
    assert len(ends) == 1, f"not one word of what became of A: {ends}"
    order = [("stream_cancelled", first), (ends[0], first), ("stream_end", first), ("stream_start", second)]
    for before, after in pairwise(order):
        assert before in at, f"no {before} in {found}"
        assert after in at, f"no {after} in {found}"
        assert at[before] < at[after], f"{after} before {before}: {found}"
    said = words(found, first)
    assert len(said) == len(set(said)), f"said twice: {said}"
    assert said.index("stream_end") < said.index("cleanup_done")
    cancelled = found[at["stream_cancelled", first]]
    assert (cancelled["reason"], cancelled["by"]) == ("superseded", second)
    end = found[at["stream_end", first]]
    assert (end["state"], end["reason"]) == ("cancelled", "superseded")
    assert int(end["duration_ms"]) >= 0


class Chat:
    """One prompt to /v1/chat/completions, read in a thread like curl would."""

    def __init__(self, system: System, prompt: str, session: str = "") -> None:
        self.run = ""
        self.text = ""
        self.error: dict[str, Any] | None = None
        self.failed = ""
        self.first_s = 0.0
        self.took_s = 0.0
        self._system = system
        self._prompt = prompt
        self._headers = {"Authorization": "Bearer devkey"} | ({"X-Session-Id": session} if session else {})
        self._began = time.monotonic()
        self._thread = threading.Thread(target=self._read, daemon=True)
        self._thread.start()

    def _read(self) -> None:
        try:
            body = {"prompt": self._prompt, "stream": True}
            path = "/v1/chat/completions"
            with self._system.http.stream(path, method="POST", body=body, headers=self._headers) as response:
                self.run = response.headers.get("X-Run-Id", "")
                for _, _, data in frames(response):
                    self._take(data)
        except OSError as error:
            self.failed = repr(error)
        self.took_s = time.monotonic() - self._began

    def _take(self, data: str) -> None:
        if data == "[DONE]":
            return
        chunk = json.loads(data)
        self.error = chunk.get("error", self.error)
        for choice in chunk.get("choices", ()):
            said = choice["delta"].get("content") or ""
            if said and not self.first_s:
                self.first_s = time.monotonic() - self._began
            self.text += said

    def named(self) -> str:
        """Its run, once the server has said which."""
        return until(lambda: self.run, "the response begins", 10)

    def end(self, limit_s: float = 20.0) -> Chat:
        """Itself, once its response has ended."""
        self._thread.join(max(0.0, self._began + limit_s - time.monotonic()))
        assert not self._thread.is_alive(), f"{self._prompt!r} hangs: {self.text[-100:]!r}"
        assert not self.failed, self.failed
        return self

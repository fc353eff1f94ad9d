"""What a scenario works with: prompts that fit the server, runs that are tidied up, and limits that are kept.

A model that follows scripts (the rehearsal model) is given directives, so that texts can be compared exactly. Any other
is given plain prompts, and only what may be said of any answer is checked.
"""

from __future__ import annotations

import asyncio
import contextlib
import itertools
import secrets
import time
from collections.abc import Coroutine, Mapping
from typing import Any, Final

from holdfast.probe.detect import Target
from holdfast.probe.options import ANSWER_S, CLOSE_S, UPSTREAM_S, Options
from holdfast.probe.reading import REFUSES, Chat, Follow
from holdfast.probe.results import Failed, Skipped
from holdfast.probe.upstream import POLL_S, Upstream, open_answers
from holdfast.probe.wire import Answer, Broke, Silent, Stream, Unreachable, Wire

CHAT: Final = "/v1/chat/completions"
RUNS: Final = "/api/runs"
DEADLINE_S: Final = 120.0  # of each run that is started here: whatever happens to us, nothing is left behind
_TIDY_S: Final = 2.0


class Bench:
    """One server under test, and all that was started there.

    Attributes:
        options: How to probe.
        target: What is probed.
        wire: The way there.
        sent: How many prompts were sent.
        lone_first_s: How long a lone prompt took to its first content, once that is known.
        lone_took_s: The same to its end.
        prompt_field: The server takes document 4's `prompt`, and no `messages`.
        sessionless: Why it is thought to know no sessions, once that was seen.
    """

    def __init__(self, options: Options, target: Target, wire: Wire) -> None:
        self.options = options
        self.target = target
        self.wire = wire
        self.sent = 0
        self.lone_first_s: float | None = None
        self.lone_took_s: float | None = None
        self.prompt_field = False
        self.sessionless = ""
        self._stats = Wire(target.stats.removesuffix("/_stats"), None, ANSWER_S) if target.stats else None
        self._idle: int | None = None
        self._runs: list[str] = []
        self._streams: list[Stream] = []
        self._numbers = itertools.count(1)
        self._nonce = secrets.token_hex(4)

    async def aclose(self) -> None:
        """End what was started, within two seconds."""
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(_TIDY_S):
                await self.tidy()
        if self._stats is not None:
            await self._stats.aclose()

    async def tidy(self) -> None:
        """Leave every stream, stop every run that has not ended."""
        for stream in self._streams:
            stream.leave()
        self._streams.clear()
        runs, self._runs = self._runs, []
        await asyncio.gather(*(self._stop_quietly(run) for run in runs))

    async def _stop_quietly(self, run: str) -> None:
        with contextlib.suppress(Silent, Broke, Unreachable):
            await self.wire.ask("POST", f"{RUNS}/{run}/stop", limit_s=_TIDY_S)

    # prompts

    def session(self, what: str) -> str:
        """A session that nobody else has."""
        return f"probe-{self._nonce}-{what}-{next(self._numbers)}"

    def short(self, word: str = "hello") -> tuple[str, str | None]:
        """A prompt with a short answer, and that answer where it is known."""
        return (f"!say {word}", word) if self.target.rehearsal else (self.options.prompt, None)

    def long(self) -> tuple[str, None]:
        """A prompt that is answered for several seconds at least."""
        return ("!tokens n=100000 rate=50" if self.target.rehearsal else self.options.long_prompt), None

    def knows_sessions(self) -> None:
        """Go on where the server may know sessions.

        Raises:
            Skipped: It was seen to know none.
        """
        if self.sessionless:
            raise Skipped(self.sessionless)

    def script(self, text: str, want: str | None = None) -> tuple[str, str | None]:
        """A script; skipped where the model follows none.

        Raises:
            Skipped: It does not.
        """
        if not self.target.rehearsal:
            raise Skipped("the model is not the rehearsal model, which can be told to do this")
        return text, want

    # chat completions

    def chat(self, prompt: tuple[str, str | None], session: str = "", *, held: bool = False) -> Chat:
        """Send a prompt, to be streamed."""
        text, want = prompt
        headers = {self.options.session_header: session} if session else {}
        self.sent += 1
        stream = self.wire.stream("POST", CHAT, self.chat_body(text, stream=True), headers=headers, held=held)
        self._streams.append(stream)
        return Chat(stream, want, self.options.within(CLOSE_S))

    def chat_body(self, text: str, *, stream: bool) -> dict[str, Any]:
        """The body of a chat completion."""
        body: dict[str, Any] = {"model": self.target.model, "stream": stream}
        body |= {"prompt": text} if self.prompt_field else {"messages": [{"role": "user", "content": text}]}
        if self.options.max_tokens:
            body["max_tokens"] = self.options.max_tokens
        return body

    def soon_s(self, later_s: float) -> float:
        """The limit for the first content of a prompt that has reason to be `later_s` later than a lone one."""
        alone = self.options.timeout_s if self.lone_first_s is None else 3 * self.lone_first_s
        return min(alone + later_s + self.options.slack_s, self.options.timeout_s)

    def end_s(self, later_s: float) -> float:
        """The same for its end."""
        alone = self.options.timeout_s if self.lone_took_s is None else 3 * self.lone_took_s
        return min(alone + later_s + self.options.slack_s, self.options.timeout_s)

    # the native API

    async def call(
        self, method: str, path: str, body: Any = None, *, headers: Mapping[str, str] | None = None, status: int = 200
    ) -> Any:
        """A call that starts no long work; its JSON.

        Raises:
            Failed: Another status, or no JSON.
        """
        answer = await self.wire.ask(method, path, body, headers=headers, limit_s=self.options.within(ANSWER_S))
        if answer.status != status or answer.json is None:
            raise Failed(f"{method} {path} was answered with {answer.words()}", f"{status} and JSON")
        return answer.json

    async def post_run(self, body: dict[str, Any], *, headers: Mapping[str, str] | None = None) -> Answer:
        """POST /api/runs; the answer, whatever it is."""
        self.sent += 1
        answer = await self.wire.ask(
            "POST", RUNS, self._run(body), headers=headers, limit_s=self.options.within(ANSWER_S)
        )
        found = answer.json
        if answer.status == 201 and isinstance(found, dict) and isinstance(found.get("id"), str):
            self._runs.append(found["id"])
        return answer

    async def start(self, prompt: tuple[str, str | None], **fields: Any) -> str:
        """Start a run; its id.

        Raises:
            Failed: It was not taken.
        """
        answer = await self.post_run({"input": prompt[0], **fields})
        if answer.status == 429:
            raise Skipped(REFUSES)
        if answer.status != 201 or not isinstance(answer.json, dict) or "id" not in answer.json:
            raise Failed(f"POST {RUNS} was answered with {answer.words()}", "201 and the run's record")
        return str(answer.json["id"])

    async def record(self, run: str) -> Any:
        """A run's record."""
        return await self.call("GET", f"{RUNS}/{run}")

    async def ended(self, run: str, limit_s: float, why: str) -> Any:
        """A run's record, once it has ended.

        Raises:
            Failed: Not in time.
        """
        end = time.monotonic() + limit_s
        while not (record := await self.record(run)).get("ended_at"):
            if time.monotonic() > end:
                raise Failed(f"{limit_s:.1f} s after {why} the run is still {record.get('state')}", "its end")
            await asyncio.sleep(POLL_S)
        return record

    def follow(self, run: str, after: str = "", *, held: bool = False, accept: str = "", last: str = "") -> Follow:
        """Read a run's log as it comes."""
        query = f"?after={after}" if after else ""
        headers = ({"Accept": accept} if accept else {}) | ({"Last-Event-ID": last} if last else {})
        stream = self.wire.stream("GET", f"{RUNS}/{run}/events{query}", headers=headers, held=held)
        self._streams.append(stream)
        return Follow(stream, self.options.within(CLOSE_S))

    def streamed(self, prompt: tuple[str, str | None], **fields: Any) -> Follow:
        """Start a run by the request that streams it."""
        self.sent += 1
        stream = self.wire.stream("POST", RUNS, self._run({"input": prompt[0], **fields}))
        self._streams.append(stream)
        return Follow(stream, self.options.within(CLOSE_S))

    def _run(self, body: dict[str, Any]) -> dict[str, Any]:
        agent = {"agent": self.target.model} if self.target.agents else {}
        return {**agent, "deadline_s": DEADLINE_S, **body}

    async def works(self, session: str, why: str) -> float:
        """The next prompt of a session is answered; how long its run took, in ms.

        Raises:
            Failed: It is not.
        """
        prompt = self.short("on")
        began = time.monotonic()
        run = await self.start(prompt, session=session)
        record = await self.ended(run, self.end_s(5.0), f"{why} and the next prompt of the session")
        if record["state"] != "completed" or (prompt[1] is not None and record.get("output") != prompt[1]):
            raise Failed(
                f"after {why} the next prompt of the session ended {record['state']}, {record['reason']}, "
                f"with {record.get('output')!r}",
                "its answer",
            )
        return (time.monotonic() - began) * 1000

    async def upstream(self) -> Upstream:
        """The model behind the server, before a scenario makes it work; what an earlier one left has ended by then."""
        before = await open_answers(self._stats)
        if self._idle is None:
            self._idle = before
        end = time.monotonic() + self.options.within(UPSTREAM_S)
        while before > self._idle and time.monotonic() < end:
            await asyncio.sleep(POLL_S)
            before = await open_answers(self._stats)
        return Upstream(self._stats, before)


async def together(*work: Coroutine[Any, Any, Any]) -> list[Any]:
    """Wait for all of them; the first failure is raised once all have ended."""
    found = await asyncio.gather(*work, return_exceptions=True)
    for each in found:
        if isinstance(each, BaseException):
            raise each
    return found

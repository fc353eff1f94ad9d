"""A server like that of document 4, sound, and the same with one thing broken each.

`Sound` has a session's registry: a new prompt cancels the one before and waits for its end. What a broken one does
differently is all that its class has.
"""

from __future__ import annotations

import asyncio
import json
from typing import Any

from tests.probe.http import Request, Response, Server

WORDS = ("one ", "two ", "three")
STEP_S = 0.01
LONG = 3000


class Sound(Server):
    """Answers, supersedes, notices who leaves, and ends its streams."""

    def __init__(self) -> None:
        super().__init__()
        self.open = 0
        self.active: dict[str, tuple[asyncio.Event, asyncio.Event]] = {}

    async def answer(self, request: Request, response: Response) -> None:
        match request.path:
            case "/v1/models":
                await response.whole({"object": "list", "data": [{"id": "tiny"}]})
            case "/_stats":
                await response.whole({"open": self.open})
            case "/v1/chat/completions":
                await self.chat(request, response)
            case _:
                await response.whole({"error": {"message": "no such path"}}, 404)

    async def chat(self, request: Request, response: Response) -> None:
        body = request.json
        if not isinstance(body, dict) or "messages" not in body:
            await response.whole({"error": {"message": "no messages"}}, 400)
        elif not body.get("stream"):
            message = {"role": "assistant", "content": "".join(WORDS)}
            await response.whole({"choices": [{"index": 0, "message": message, "finish_reason": "stop"}]})
        else:
            long = "essay" in body["messages"][-1]["content"]
            await self.in_session(request, response, WORDS * LONG if long else WORDS)

    def session(self, request: Request) -> str:
        return request.headers.get("x-session-id", "")

    async def in_session(self, request: Request, response: Response, words: tuple[str, ...]) -> None:
        session = self.session(request)
        if not session:
            await self.stream(request, response, words, asyncio.Event())
            return
        stop, ended = asyncio.Event(), asyncio.Event()
        before, self.active[session] = self.active.get(session), (stop, ended)
        try:
            if before is not None:
                before[0].set()
                await before[1].wait()
            await self.stream(request, response, words, stop)
        finally:
            ended.set()

    async def stream(self, request: Request, response: Response, words: tuple[str, ...], stop: asyncio.Event) -> None:
        self.open += 1
        try:
            await response.begin()
            for word in words:
                if self.left(request) or stop.is_set():
                    break
                await response.event(chunk({"content": word}))
                await asyncio.sleep(STEP_S)
            if not self.left(request):
                await self.finish(response, "superseded" if stop.is_set() else "")
        finally:
            self.open -= 1

    def left(self, request: Request) -> bool:
        return request.gone.is_set()

    async def finish(self, response: Response, error: str) -> None:
        if error:
            await response.event(json.dumps({"error": {"message": error, "code": error}}))
        else:
            await response.event(chunk({}, "stop"))
        await response.event("[DONE]")
        await response.end()


def chunk(delta: dict[str, Any], finish: str | None = None) -> str:
    return json.dumps({"choices": [{"index": 0, "delta": delta, "finish_reason": finish}]})


class TakesPromptOnly(Sound):
    """Document 4's own body: `prompt`, and no `messages`."""

    async def chat(self, request: Request, response: Response) -> None:
        body = request.json
        if not isinstance(body, dict) or "prompt" not in body:
            await response.whole({"detail": "prompt is missing"}, 422)
        else:
            await self.in_session(request, response, WORDS * LONG if "essay" in body["prompt"] else WORDS)


class NeverEnds(Sound):
    """The answer is there, and the stream stays open: document 3's silent death."""

    async def finish(self, response: Response, error: str) -> None:
        await response.event(chunk({}, "stop"))
        await asyncio.sleep(60)


class NeverCloses(Sound):
    """The same after [DONE]."""

    async def finish(self, response: Response, error: str) -> None:
        await response.event(chunk({}, "stop"))
        await response.event("[DONE]")
        await asyncio.sleep(60)


class Cuts(Sound):
    """The answer just stops: no finish_reason, no [DONE]."""

    async def finish(self, response: Response, error: str) -> None:
        await response.end()


class Deadlocks(Sound):
    """The second prompt of a session waits for the first, and the first is not told: document 4's hang."""

    async def in_session(self, request: Request, response: Response, words: tuple[str, ...]) -> None:
        before = self.active.get(self.session(request))
        mine = self.active[self.session(request)] = (asyncio.Event(), asyncio.Event())
        if before is not None:
            await before[1].wait()
        await self.stream(request, response, words, asyncio.Event())
        mine[1].set()


class LocksUp(Sound):
    """A second prompt of a session takes the whole server with it: kill -9 is needed."""

    def __init__(self) -> None:
        super().__init__()
        self.locked = False

    async def in_session(self, request: Request, response: Response, words: tuple[str, ...]) -> None:
        session = self.session(request)
        if self.locked or session in self.active:
            self.locked = True
            await asyncio.sleep(60)
        if session:
            self.active[session] = (asyncio.Event(), asyncio.Event())
        await self.stream(request, response, words, asyncio.Event())


class LeavesTheFirstHanging(Sound):
    """B is answered, and A's stream neither ends nor goes on."""

    async def finish(self, response: Response, error: str) -> None:
        if error:
            await asyncio.sleep(60)
        await super().finish(response, error)

    async def in_session(self, request: Request, response: Response, words: tuple[str, ...]) -> None:
        before, stop = self.active.get(self.session(request)), asyncio.Event()
        self.active[self.session(request)] = (stop, stop)
        if before is not None:
            before[0].set()
        await self.stream(request, response, words, stop)


class IgnoresDisconnects(Sound):
    """Whoever leaves is written to on and on: the model works for nobody."""

    def left(self, request: Request) -> bool:
        return False


class ServesTheLeftFirst(Deadlocks):
    """Nobody sees that the client has left, and the session waits for its answer to end."""

    def left(self, request: Request) -> bool:
        return False


class MixesSessions(Sound):
    """One registry for everybody: a prompt in one session ends the answer of another."""

    def session(self, request: Request) -> str:
        return "all" if super().session(request) else ""


class KnowsNoSessions(Sound):
    """Every prompt for itself: no hang, and no supersede."""

    def session(self, request: Request) -> str:
        return ""


class Sheds(Sound):
    """Refuses every prompt for its load."""

    async def chat(self, request: Request, response: Response) -> None:
        await response.whole({"error": {"message": "come back later"}}, 429)


class NeverAnswers(Sound):
    """Takes prompts, and answers none."""

    async def chat(self, request: Request, response: Response) -> None:
        await asyncio.sleep(60)


class Silent(Server):
    """Takes connections, and says nothing at all."""

    async def answer(self, request: Request, response: Response) -> None:
        await asyncio.sleep(60)

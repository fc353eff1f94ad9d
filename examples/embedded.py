"""Holdfast inside an application of one's own, at /agents, with a route that uses it. uvicorn embedded:app

Its page is at http://127.0.0.1:8000/agents/, and curl http://127.0.0.1:8000/ask/hello answers by a run.
"""

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import JSONResponse
from starlette.routing import Mount, Route
from starlette.types import Receive, Scope, Send

import holdfast
from holdfast.ports.agent import RunContext


async def echo(ctx: RunContext) -> AsyncIterator[str]:
    for word in ctx.input.split():
        yield word + " "
        await asyncio.sleep(0.1)


@asynccontextmanager
async def lifespan(app: Starlette) -> AsyncIterator[None]:
    async with holdfast.open(echo, store="sqlite:///embedded.db") as hold, hold.client() as client:
        app.state.hold, app.state.client = hold, client
        yield


async def ask(request: Request) -> JSONResponse:
    client = request.app.state.client
    run = await client.start(request.path_params["text"])
    async for event in client.follow(run["id"]):
        last = event
    return JSONResponse({"run": run["id"], "answer": last.get("output")})


async def agents(scope: Scope, receive: Receive, send: Send) -> None:
    await app.state.hold.app(scope, receive, send)  # which is there once the application has started


app = Starlette(routes=[Route("/ask/{text}", ask), Mount("/agents", agents)], lifespan=lifespan)

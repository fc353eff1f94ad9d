"""MCP servers over HTTP: what they answer is bounded, compressed or not, and the connection serves on."""

from __future__ import annotations

import asyncio
import gzip
import json
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager, suppress
from typing import Any

import pytest
from pydantic_ai import Agent
from pydantic_ai.mcp import MCPToolset

from holdfast.agents import PydanticAgent
from holdfast.ports.agent import Result, ToolFinished
from tests.agents.support import Rig, context, tell

LIMIT = 65_536
PIECE = b"x" * LIMIT
SCHEMA = {"type": "object", "properties": {}}


class Server:
    """Speaks as much of MCP over HTTP as a client needs; one tool for each way to answer."""

    def __init__(self) -> None:
        self.sent = 0
        self.encodings: set[bytes] = set()

    async def serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        with suppress(OSError, asyncio.IncompleteReadError):
            async with asyncio.timeout(10):
                head = await reader.readuntil(b"\r\n\r\n")
                fields = dict(line.lower().split(b": ", 1) for line in head.split(b"\r\n")[1:] if b": " in line)
                self.encodings.add(fields.get(b"accept-encoding", b""))
                body = await reader.readexactly(int(fields.get(b"content-length", 0)))
                if not head.startswith(b"POST"):
                    await self.answer(writer, b"405 Method Not Allowed", b"")
                else:
                    await self.message(writer, json.loads(body))
        writer.close()

    async def message(self, writer: asyncio.StreamWriter, message: dict[str, Any]) -> None:
        match message["method"]:
            case "initialize":
                asked = message["params"]["protocolVersion"]
                server = {"name": "s", "version": "1"}
                result = {"protocolVersion": asked, "capabilities": {"tools": {}}, "serverInfo": server}
            case "tools/list":
                result = {"tools": [{"name": name, "inputSchema": SCHEMA} for name in ("small", "endless", "bomb")]}
            case "tools/call":
                await self.call(writer, message)
                return
            case _ if "id" in message:
                said = {"jsonrpc": "2.0", "id": message["id"], "error": {"code": -32601, "message": "no such method"}}
                await self.answer(writer, b"200 OK", json.dumps(said).encode())
                return
            case _:
                await self.answer(writer, b"202 Accepted", b"")
                return
        said = {"jsonrpc": "2.0", "id": message["id"], "result": result}
        await self.answer(writer, b"200 OK", json.dumps(said).encode())

    async def call(self, writer: asyncio.StreamWriter, message: dict[str, Any]) -> None:
        name = message["params"]["name"]
        result = {"content": [{"type": "text", "text": "seen"}], "isError": False}
        said = json.dumps({"jsonrpc": "2.0", "id": message["id"], "result": result}).encode()
        if name == "small":
            await self.answer(writer, b"200 OK", gzip.compress(said), b"Content-Encoding: gzip\r\n")
        elif name == "bomb":
            await self.answer(writer, b"200 OK", gzip.compress(b" " * 64 * LIMIT + said), b"Content-Encoding: gzip\r\n")
        else:
            writer.write(b"HTTP/1.1 200 OK\r\nContent-Type: application/json\r\nConnection: close\r\n\r\n")
            while self.sent < 1024 * LIMIT:
                writer.write(PIECE)
                await writer.drain()
                self.sent += LIMIT

    async def answer(self, writer: asyncio.StreamWriter, status: bytes, body: bytes, more: bytes = b"") -> None:
        length = b"Content-Length: %d\r\n" % len(body)
        kind = b"Content-Type: application/json\r\n"
        writer.write(b"HTTP/1.1 %b\r\n%b%b%bConnection: close\r\n\r\n%b" % (status, kind, length, more, body))
        await writer.drain()


@asynccontextmanager
async def serving() -> AsyncIterator[tuple[Server, str]]:
    site = Server()
    async with await asyncio.start_server(site.serve, "127.0.0.1") as server:
        yield site, f"http://127.0.0.1:{server.sockets[0].getsockname()[1]}/mcp"


@pytest.mark.parametrize("tool", ["endless", "bomb"])
async def test_an_answer_that_is_too_large_costs_its_call_and_nothing_else(rig: Rig, tool: str) -> None:
    """P7: a whole answer was read to its end, however large; an endless one filled the worker until its limit."""
    limits = {"mcp_message_bytes": LIMIT, "mcp_start_s": 8.0, "tool_timeout_s": 8.0}
    rig.settings = rig.settings.model_copy(update=limits)
    async with serving() as (server, url):
        agent: Agent[Any, Any] = Agent(rig.model, toolsets=[MCPToolset(url)])
        adapter = PydanticAgent(agent, "test", rig.settings, rig.pool)
        told = await tell(adapter.run(context(f"!tool {tool} {{}}\n!tool small {{}}\n!say done")), limit_s=20.0)
    failed, worked = told.of(ToolFinished)
    assert failed.outcome != "success"
    assert "mcp_message_bytes" in str(failed.result), failed
    assert (worked.outcome, worked.result) == ("success", "seen"), "the next call is served, compressed as it is"
    assert told.of(Result)[0].output == "done"
    assert server.sent < 512 * LIMIT, "it was closed, and not read to its end"
    assert server.encodings == {b"identity"}

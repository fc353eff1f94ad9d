"""What is said of a model's server."""

from __future__ import annotations

import asyncio
from unittest.mock import MagicMock

import pytest

from holdfast.app.readiness import ModelPart
from holdfast.app.serving import _announce
from holdfast.app.upstream import probe_model
from holdfast.config import Settings
from tests.system.support import free_port

PASSWORD = "pa55word"


async def _answer(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    try:
        async with asyncio.timeout(5):
            await reader.readuntil(b"\r\n\r\n")
        writer.write(b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\nConnection: close\r\n\r\n{}")
        await writer.drain()
    finally:
        writer.close()


@pytest.mark.parametrize("there", [True, False])
async def test_the_password_of_a_models_url_is_not_shown(there: bool) -> None:
    """/readyz is read by more people than may use the model."""
    server = await asyncio.start_server(_answer, "127.0.0.1", 0)
    async with server:
        port = server.sockets[0].getsockname()[1] if there else free_port()
        url = f"http://user:{PASSWORD}@127.0.0.1:{port}/v1"
        reached = await probe_model(url)
        part = await ModelPart(url)()
    assert (reached.reachable, part["ok"]) == (there, there)
    said = f"{reached.detail} {reached.problem(url)} {part}"
    assert f"user:[masked]@127.0.0.1:{port}" in said
    assert PASSWORD not in said


def test_nor_at_the_start() -> None:
    """The first lines of a server go into the log of whoever runs it."""

    settings = Settings(model="m", model_url=f"http://user:{PASSWORD}@127.0.0.1:9/v1")
    lines: list[str] = []
    _announce(MagicMock(settings=settings, infos=[]), lines.append, rehearsal=False)
    said = "\n".join(lines)
    assert "m at http://user:[masked]@127.0.0.1:9/v1" in said
    assert PASSWORD not in said

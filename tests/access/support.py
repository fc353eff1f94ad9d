"""Keys, tokens and a server of public keys, for the tests of who may enter."""

import asyncio
import json
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager, suppress
from pathlib import Path
from typing import Any

import jwt
from cryptography.hazmat.primitives.asymmetric import rsa

from holdfast.aio import settle
from tests.gateway.support import Site, site

SECRET = "a secret of more than thirty-two bytes"
AUDIENCE, ISSUER = "holdfast", "https://issuer.example"
ALICE, BOB, READER = "alice-key", "bob-key", "reader-key"
KEYS = f"alice:{ALICE}, bob:{BOB}, looker:{READER} tenant=alice scopes=read"


def bearer(secret: str) -> dict[str, str]:
    """The header that carries a key or a token."""
    return {"Authorization": f"Bearer {secret}"}


def claims(subject: Any = "carol", **more: Any) -> dict[str, Any]:
    """Claims that are let in; `more` changes some, None leaves them out."""
    found = {"sub": subject, "aud": AUDIENCE, "iss": ISSUER, "exp": int(time.time()) + 600, "tenant": "acme", **more}
    return {name: value for name, value in found.items() if value is not None}


def token(secret: Any = SECRET, algorithm: str = "HS256", headers: Any = None, **more: Any) -> str:
    """A token signed with a secret, or a private key."""
    return jwt.encode(claims(**more), secret, algorithm=algorithm, headers=headers)


class Issuer:
    """A server of public keys whose answer the test decides, and how often it was asked."""

    def __init__(self) -> None:
        self.url = ""
        self.asked = 0
        self.silent = False
        self.tasks: set[Any] = set()
        self.status = 200
        self.keys: dict[str, Any] = {}
        self.body = b""

    def add(self, key_id: str) -> Any:
        """A new key, published; answers its private half."""
        private = rsa.generate_private_key(public_exponent=65537, key_size=2048)
        public = json.loads(jwt.algorithms.RSAAlgorithm.to_jwk(private.public_key()))
        self.keys[key_id] = {**public, "kid": key_id, "use": "sig", "alg": "RS256"}
        return private

    async def serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self.tasks.add(asyncio.current_task())
        await reader.readuntil(b"\r\n\r\n")
        self.asked += 1
        if self.silent:
            await reader.read()
        body = self.body or json.dumps({"keys": list(self.keys.values())}).encode()
        head = f"HTTP/1.1 {self.status} x\r\nContent-Length: {len(body)}\r\nConnection: close\r\n\r\n"
        writer.write(head.encode() + body)
        writer.close()
        with suppress(ConnectionError):
            await writer.wait_closed()


@asynccontextmanager
async def issuer() -> AsyncIterator[Issuer]:
    """Publish keys on a free port, on the test's own loop."""
    made = Issuer()
    server = await asyncio.start_server(made.serve, "127.0.0.1", 0)
    made.url = f"http://127.0.0.1:{server.sockets[0].getsockname()[1]}/keys"
    try:
        yield made
    finally:
        server.close()
        assert not await settle(made.tasks, 5)


@asynccontextmanager
async def keyed(directory: Path, **more: Any) -> AsyncIterator[Site]:
    """A gateway with the keys of alice and bob, and tokens of a secret."""
    given = {"api_keys": KEYS, "jwt_secret": SECRET, "jwt_audience": AUDIENCE, "jwt_issuer": ISSUER, "jwt_leeway_s": 1}
    async with site(directory, **{**given, **more}) as here:
        yield here

"""JSON Web Tokens: who may enter with a signature of somebody we trust (RFC 7519; keys as in RFC 7517).

Which algorithms may sign is decided by the key, never by the token: a shared secret takes HS256, HS384 and HS512, a key
of the JWKS only its own public-key algorithm. So neither `alg: none` nor a public key taken for a secret gets in.
"""

from __future__ import annotations

import asyncio
import hashlib
import re
import time
from typing import Any, Final, NamedTuple

import httpx2
import jwt
from jwt.types import Options

from holdfast.domain.errors import HoldfastError
from holdfast.gateway.problems import refused
from holdfast.telemetry import Log

TOKEN_BYTES_MAX: Final = 16_384
TENANT_MAX: Final = 128

_SHARED: Final = ("HS256", "HS384", "HS512")
_PUBLIC: Final = frozenset({"RS256", "RS384", "RS512", "PS256", "PS384", "PS512", "ES256", "ES384", "ES512", "EdDSA"})
_FETCH_S: Final = 3.0
_FRESH_S: Final = 300.0
_STALE_S: Final = 86_400.0  # how long keys are used while their server cannot be asked
_AGAIN_S: Final = 10.0  # between two fetches, whatever key ids tokens name
_JWKS_BYTES_MAX: Final = 1_048_576
_KEYS_MAX: Final = 100


class Claims(NamedTuple):
    """What a valid token says.

    Attributes:
        subject: Its `sub`.
        tenant: Whose runs it sees: its `sub` within its claim `tenant`, as an id.
        scopes: The words of its claim `scope`, or None where it has none.
        until: When it ends, in seconds since 1970, the leeway included.
    """

    subject: str
    tenant: str
    scopes: frozenset[str] | None
    until: float


class KeySet:
    """The public keys at a URL, fetched when they are first needed, kept for a bounded time."""

    def __init__(self, url: str, log: Log) -> None:
        """Take the URL of a JWKS; nothing is asked yet."""
        self.why = ""  # why the last fetch failed
        self._url = url
        self._log = log
        self._keys: dict[str, jwt.PyJWK] = {}
        self._fetched = self._tried = float("-inf")
        self._fetching = asyncio.Lock()

    async def find(self, key_id: str | None) -> jwt.PyJWK:
        """The key of this id; where a token names none, the only key.

        Raises:
            HoldfastError: not_ready, where no keys can be had; unauthorized, where none fits.
        """
        if self._wants_fetch(key_id):
            async with self._fetching:  # many may wait for one fetch, each for `_FETCH_S` at most
                if self._wants_fetch(key_id):
                    await self._fetch()
        if not self._keys or time.monotonic() - self._fetched > _STALE_S:
            raise HoldfastError(
                "not_ready",
                f"no keys to check tokens with: {self.why}",
                remedy="see that jwks_url is right and its server answers; API keys work meanwhile",
            )
        if key_id is None and len(self._keys) == 1:
            return next(iter(self._keys.values()))
        if (key := self._keys.get(key_id or "")) is not None:
            return key
        raise refused("no key of jwks_url has the token's kid")

    def _wants_fetch(self, key_id: str | None) -> bool:
        now = time.monotonic()
        if now - self._tried < _AGAIN_S:
            return False
        return now - self._fetched > _FRESH_S or (key_id is not None and key_id not in self._keys)

    async def _fetch(self) -> None:
        self._tried = time.monotonic()
        try:
            keys = await self._ask()
        except (TimeoutError, httpx2.HTTPError, httpx2.InvalidURL, OSError, ValueError, jwt.PyJWTError) as error:
            self.why = f"{self._url}: {type(error).__name__}: {error}"[:500]
            self._log.write("jwks_not_read", error=self.why, keys=len(self._keys))
        else:
            self._keys, self._fetched, self.why = keys, time.monotonic(), ""

    async def _ask(self) -> dict[str, jwt.PyJWK]:
        data = bytearray()
        async with (
            asyncio.timeout(_FETCH_S),
            httpx2.AsyncClient(timeout=_FETCH_S, follow_redirects=False) as client,
            client.stream("GET", self._url, headers={"Accept": "application/json"}) as response,
        ):
            response.raise_for_status()
            async for piece in response.aiter_bytes():
                data += piece
                if len(data) > _JWKS_BYTES_MAX:
                    raise ValueError(f"the key set is larger than {_JWKS_BYTES_MAX} bytes")
        found = _key_set(bytes(data)).keys[:_KEYS_MAX]
        keys = {key.key_id or "": key for key in found if key.algorithm_name in _PUBLIC and key.public_key_use != "enc"}
        if not keys:
            raise ValueError("the key set has no public key that signs")
        return keys


class Tokens:
    """Checks tokens against a secret, a key set, or both."""

    def __init__(self, secret: str, keys: KeySet | None, *, audience: str, issuer: str, leeway_s: float) -> None:
        """Take what tokens are checked with; "" is not required, but a token's audience must be ours."""
        self._secret = secret
        self._keys = keys
        self._audience = audience or None
        self._issuer = issuer or None
        self._leeway_s = leeway_s
        required = ["exp", "sub", *(["aud"] if audience else []), *(["iss"] if issuer else [])]
        self._options: Options = {"require": required}

    async def check(self, token: str) -> Claims:
        """What a token says, once its signature and times are found right.

        Raises:
            HoldfastError: unauthorized, with what is wrong; not_ready, where the key set cannot be had.
        """
        if len(token) > TOKEN_BYTES_MAX:
            raise refused(f"the token is longer than {TOKEN_BYTES_MAX} characters")
        try:
            header = jwt.get_unverified_header(token)
            key, algorithms = await self._key(header)
            claims = jwt.decode(
                token,
                key,
                algorithms=algorithms,
                options=self._options,
                audience=self._audience,
                issuer=self._issuer,
                leeway=self._leeway_s,
            )
            return self._read(claims)
        except jwt.ExpiredSignatureError:
            raise refused("the token has expired", "get a new token") from None
        except (jwt.PyJWTError, ValueError, TypeError, OverflowError, RecursionError) as error:
            raise refused(f"the token is not valid: {error}"[:300]) from None

    async def _key(self, header: dict[str, Any]) -> tuple[Any, list[str]]:
        algorithm = header.get("alg")
        if algorithm in _SHARED and self._secret:
            return self._secret, list(_SHARED)
        if algorithm in _PUBLIC and self._keys is not None:
            key = await self._keys.find(header.get("kid"))
            return key.key, [key.algorithm_name]
        raise refused(f"no key of ours checks tokens of algorithm {algorithm!r}"[:200])

    def _read(self, claims: dict[str, Any]) -> Claims:
        subject, within, scope = claims["sub"], claims.get("tenant", ""), claims.get("scope")
        if not isinstance(within, str) or not isinstance(scope, str | None):
            raise refused("the token's claims tenant and scope must be strings")
        if not subject:
            raise refused("the token's claim sub is empty")
        scopes = None if scope is None else frozenset(scope.split())
        return Claims(subject, tenant_id(within, subject), scopes, float(claims["exp"]) + self._leeway_s)


def _key_set(data: bytes) -> jwt.PyJWKSet:
    """The document as the library reads it.

    Raises:
        ValueError: It is none.
    """
    try:
        return jwt.PyJWKSet.from_json(data.decode("utf-8"))
    except Exception as error:  # somebody else's document: too deep, of odd types; the keys that we have stay
        raise ValueError(f"not a key set: {type(error).__name__}: {error}"[:300]) from error


def tenant_id(within: str, subject: str) -> str:
    """An id of our own for a subject within a tenant: readable, at most 128 characters, no two alike.

    What is not of [A-Za-z0-9_-] is written as `.` and two hex digits a byte. API keys' tenants have no colon.
    """
    name = f"{_escaped(within)}:{_escaped(subject)}"
    if len(name) <= TENANT_MAX:
        return name
    return f"::{hashlib.sha256(name.encode()).hexdigest()}"


def _escaped(text: str) -> str:
    return re.sub(
        r"[^A-Za-z0-9_-]",
        lambda match: "".join(f".{byte:02x}" for byte in match[0].encode("utf-8", "surrogatepass")),
        text,
    )

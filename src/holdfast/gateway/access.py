"""Who a request is from, and whether it may do what it asks.

Without keys and tokens everybody on loopback is one tenant, and Authorization is ignored. With either, each request
but the open ones carries a key or a token; what it names of another tenant's does not exist for it.
"""

from __future__ import annotations

import asyncio
import hmac
import secrets
import time
from typing import TYPE_CHECKING, Any, Final, NamedTuple
from urllib.parse import urlsplit

from starlette.datastructures import Headers
from starlette.requests import HTTPConnection

from holdfast.config import Settings
from holdfast.domain.errors import HoldfastError
from holdfast.domain.ids import LOCAL_TENANT, SYNTHETIC_TENANT
from holdfast.gateway.api_keys import READ, RUN, SCOPES, ApiKey, ApiKeys, BadKeys
from holdfast.gateway.problems import refused
from holdfast.telemetry import Log

if TYPE_CHECKING:
    from holdfast.gateway.tokens import KeySet, Tokens

# What tells nobody's business: asked by load balancers and browsers, which have no key.
OPEN: Final = frozenset({"/", "/livez", "/readyz", "/startupz", "/health", "/version", "/openapi.json", "/docs"})

_READS: Final = frozenset({"GET", "HEAD"})
_KNOWS_S: Final = 0.15  # a key set that must be fetched may take longer, and probes may not
_SECRET_MAX: Final = 16_384
SECRET_BYTES_MIN: Final = 32  # of a secret that signs, RFC 7518 section 3.2: a key as long as the hash
_BEARER: Final = "bearer."  # a WebSocket's subprotocol that carries a key, for browsers, which can set no header


class Identity(NamedTuple):
    """Who is there.

    Attributes:
        subject: By what name: of the key, or the token's `sub`.
        tenant: Whose runs it sees.
        scopes: `read`, `run`, or both.
        until: When its token ends, in seconds since 1970; None where that is never.
        key: The API key it came with.
    """

    subject: str
    tenant: str
    scopes: frozenset[str] = SCOPES
    until: float | None = None
    key: ApiKey | None = None


LOCAL: Final = Identity(LOCAL_TENANT, LOCAL_TENANT)
SYNTHETIC: Final = Identity(SYNTHETIC_TENANT, SYNTHETIC_TENANT)


class Access:
    """The door of one gateway."""

    def __init__(self, settings: Settings, log: Log) -> None:
        """Read the keys.

        Raises:
            BadKeys: Keys, tokens or origins are not set as they must be; says which, and the remedy.
        """
        secret = settings.jwt_secret.get_secret_value()
        self.keys = ApiKeys(settings.api_keys.get_secret_value(), settings.api_keys_file, log)
        self.key_set: KeySet | None = None
        self.tokens: Tokens | None = None
        if secret or settings.jwks_url:
            from holdfast.gateway.tokens import KeySet, Tokens  # with it come jwt and cryptography

            self.key_set = KeySet(settings.jwks_url, log) if settings.jwks_url else None
            self.tokens = Tokens(
                secret,
                self.key_set,
                audience=settings.jwt_audience,
                issuer=settings.jwt_issuer,
                leeway_s=settings.jwt_leeway_s,
            )
        self.synthetic = secrets.token_urlsafe(32)  # of this process only: by which its synthetic runs come in
        self._synthetic = f"Bearer {self.synthetic}".encode()
        self.keyless = not (len(self.keys) or settings.api_keys_file or self.tokens)
        self.origins = frozenset(_origins(settings.cors_origins))

    def describe(self) -> str:
        """How one enters, for whoever starts the server."""
        if self.keyless:
            return "loopback without keys: whoever reaches it may use it"
        ways = [f"{len(self.keys)} API keys"] if len(self.keys) else []
        return " and ".join([*ways, "tokens"] if self.tokens else ways) or "no API key yet: nobody can enter"

    def problem(self) -> str:
        """What of the door does not work as it is set, or ""."""
        return self.keys.why or (self.key_set.why if self.key_set else "")

    async def admit(self, connection: HTTPConnection) -> Identity:
        """Who sends this request, or opens this socket.

        Raises:
            HoldfastError: unauthorized, or not_ready where tokens cannot be checked.
        """
        if hmac.compare_digest(connection.headers.get("authorization", "").encode(), self._synthetic):
            return SYNTHETIC
        if self.keyless:
            return LOCAL
        secret = _secret_of(connection)
        if len(secret) > _SECRET_MAX:
            raise refused(f"the key is longer than {_SECRET_MAX} characters")
        if (key := self.keys.find(secret)) is not None:
            return Identity(key.name, key.tenant, key.scopes, None, key)
        if self.tokens is None:
            raise refused("the API key is not known")
        if secret.count(".") != 2:
            raise refused("neither a known API key nor a token")
        claims = await self.tokens.check(secret)
        scopes = SCOPES if claims.scopes is None else SCOPES & claims.scopes
        return Identity(claims.subject, claims.tenant, scopes, claims.until)

    async def knows(self, connection: HTTPConnection) -> bool:
        """Whether somebody may read more than strangers do: of what is open, the reasons."""
        try:
            async with asyncio.timeout(_KNOWS_S):
                return READ in (await self.admit(connection)).scopes
        except (HoldfastError, TimeoutError):
            return False

    def ended(self, who: Identity) -> str:
        """Why somebody who was admitted would not be now, or ""."""
        if who.until is not None and time.time() >= who.until:
            return "the token has expired"
        if who.key is not None and not self.keys.holds(who.key):
            return f"the API key {who.key.name} was withdrawn"
        return ""

    def check_origin(self, headers: Headers) -> None:
        """Raise forbidden_origin where a page of elsewhere opens a socket: browsers ask nobody before they do."""
        origin = headers.get("origin")
        if self.keyless or origin is None or origin in self.origins:
            return
        try:
            own = urlsplit(origin).netloc == headers.get("host", "")
        except ValueError:
            own = False
        if not own:
            raise HoldfastError(
                "forbidden_origin",
                f"Origin {origin[:200]!r} is not of this server",
                remedy="add it to cors_origins, or open the socket from a page of this server",
            )


def check_scope(who: Identity, scope: str) -> None:
    """Raise forbidden_scope unless `who` may do what needs `scope`."""
    if scope not in who.scopes:
        raise HoldfastError("forbidden_scope", f"{who.subject[:100]} has not the scope {scope!r}")


def scope_of(method: str) -> str:
    """What a request with this method needs."""
    return READ if method in _READS else RUN


def identity_of(connection: HTTPConnection) -> Identity:
    """Who was admitted; whoever is asked before that is nobody."""
    found = identified(connection.scope)
    if found is None:
        raise refused("the request was not admitted")
    return found


def identified(scope: Any) -> Identity | None:
    """Who was admitted with this request, or None."""
    found = scope.get("holdfast.identity")
    return found if isinstance(found, Identity) else None


def remember(scope: Any, who: Identity) -> None:
    """Say who was admitted, for `identity_of`."""
    scope["holdfast.identity"] = who


def _secret_of(connection: HTTPConnection) -> str:
    """The bearer of Authorization, or of a WebSocket's subprotocol."""
    header = connection.headers.get("authorization", "")
    scheme, _, value = header.partition(" ")
    if scheme.lower() == "bearer" and value.strip():
        return value.strip()
    if header:
        raise refused("Authorization is not `Bearer <api key or JWT>`")
    for name in connection.scope.get("subprotocols", ()):
        if name.startswith(_BEARER) and len(name) > len(_BEARER):
            return str(name.removeprefix(_BEARER))
    raise refused("no Authorization header")


def _origins(listed: str) -> list[str]:
    found = [text.strip().rstrip("/") for text in listed.split(",") if text.strip()]
    for origin in found:
        parts = urlsplit(origin)
        if not (parts.scheme and parts.netloc) or parts.path or parts.query:
            raise BadKeys(f"cors_origins: {origin[:200]!r} is not an origin; write scheme://host[:port], and no *")
    return found


__all__ = [
    "LOCAL",
    "OPEN",
    "READ",
    "RUN",
    "SECRET_BYTES_MIN",
    "SYNTHETIC",
    "Access",
    "BadKeys",
    "Identity",
    "check_scope",
    "identified",
    "identity_of",
    "remember",
    "scope_of",
]

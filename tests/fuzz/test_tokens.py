"""Tokens, key sets and lists of keys take anything and raise nothing but what their callers expect (P8, P12).

Most of what is tried is signed with the right secret: a forger's text ends at its signature, a mistake does not.
"""

import asyncio
import base64
import contextlib
import hashlib
import hmac
import json
import os
from typing import Any

import httpx2
import jwt
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from holdfast.domain.errors import HoldfastError
from holdfast.domain.ids import is_id
from holdfast.gateway import tokens
from holdfast.gateway.api_keys import ApiKeys, BadKeys
from holdfast.gateway.tokens import KeySet, Tokens
from holdfast.telemetry import Log
from tests.access.support import SECRET

pytestmark = [pytest.mark.slow, pytest.mark.timeout(60)]

fuzz = settings(max_examples=5000 if os.environ.get("HOLDFAST_FULL") else 150)
scalars = st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=20)
values = st.recursive(
    scalars, lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=6), inner, max_size=3)
)
names = st.sampled_from(["exp", "nbf", "iat", "sub", "aud", "iss", "tenant", "scope", "jti"])
claim_sets = st.dictionaries(names, values) | values
headers = st.dictionaries(st.sampled_from(["alg", "kid", "typ", "crit", "b64", "jku", "jwk"]), values)
members = st.sampled_from(["kty", "kid", "n", "e", "crv", "x", "y", "k", "alg", "use"])
likely = st.sampled_from(["RSA", "EC", "OKP", "oct", "AQAB", "P-256", "Ed25519", "RS256", "sig", "k"])
jwks = st.dictionaries(members, likely | values)
key_sets = values | st.fixed_dictionaries({"keys": values | st.lists(values | jwks, max_size=4)})


def encoded(value: Any) -> bytes:
    return base64.urlsafe_b64encode(json.dumps(value).encode()).rstrip(b"=")


def signed(header: Any, claims: Any) -> str:
    """As an issuer signs that has our secret, and no library that would say what is wrong."""
    text = encoded(header) + b"." + encoded(claims)
    digest = hmac.new(SECRET.encode(), text, hashlib.sha256).digest()
    return (text + b"." + base64.urlsafe_b64encode(digest).rstrip(b"=")).decode()


def check(token: str) -> tokens.Claims | None:
    """What it says, or None where it is refused, as it must be."""
    door = Tokens(SECRET, None, audience="", issuer="", leeway_s=0)
    try:
        return asyncio.run(door.check(token))
    except HoldfastError as error:
        refused = error
    assert refused.code == "unauthorized"
    assert SECRET not in refused.detail
    json.dumps(refused.detail)
    return None


@fuzz
@given(st.text(max_size=200) | st.text("abc.-_=eyJ0", max_size=200))
@example("..")
@example("e30.e30.")
@example("\ud800.\ud800.\ud800")
def test_any_text_is_no_token(text: str) -> None:
    """Whatever stands in Authorization is refused as unauthorized: no 500, no traceback, no way in."""
    assert check(text) is None


@fuzz
@given(headers, claim_sets)
@example({"alg": "HS256"}, {"sub": "a", "exp": 1e400})
@example({"alg": "HS256"}, {"sub": "a", "exp": float("nan")})
@example({"alg": "HS256"}, {"sub": "a", "exp": 10**400})
@example({"alg": "HS256"}, {"sub": "a", "exp": 9_999_999_999, "scope": 7})
@example({"alg": "HS256"}, {"sub": "a", "exp": 9_999_999_999, "tenant": "\ud800"})
@example({"alg": "HS256", "kid": ["k"]}, {"sub": "a", "exp": 9_999_999_999})
@example({"alg": ["HS256"]}, {"sub": "a", "exp": 9_999_999_999})
@example({"alg": "HS256"}, ["sub", "exp"])
def test_what_an_issuer_signs_is_somebody_or_refused(header: Any, claims: Any) -> None:
    """A right signature on wrong claims opens nothing, and whoever is let in has an id for a tenant and an end."""
    for head in (header, {**header, "alg": "HS256", "typ": "JWT"}):
        found = check(signed(head, claims))
        if found is not None:
            assert is_id(found.tenant)
            assert 0 < found.until < float("inf")


@fuzz
@given(st.binary(max_size=200) | key_sets.map(lambda value: json.dumps(value).encode()))
@example(b'{"keys": [1]}')
@example(b'{"keys": {"kty": "RSA"}}')
@example(b'{"keys": [{"kty": "oct", "k": 7}]}')
@example(b'{"keys": [{"kty": "RSA", "kid": ["k"], "n": "AQAB", "e": "AQAB"}]}')
@example(b"[" * 100_000)
def test_any_key_set_is_read_or_lets_nobody_in(body: bytes) -> None:
    """The issuer's server may answer anything: tokens get 503 with the reason, and the door stays."""

    async def ask() -> None:
        real = httpx2.AsyncClient

        def client(**options: Any) -> httpx2.AsyncClient:
            return real(transport=httpx2.MockTransport(lambda request: httpx2.Response(200, content=body)), **options)

        with pytest.MonkeyPatch.context() as patched:
            patched.setattr(tokens.httpx2, "AsyncClient", client)
            keys = KeySet("http://issuer.example/jwks", Log())
            code, found = "", None
            try:
                found = await keys.find("k")
            except HoldfastError as error:
                code = error.code
            assert isinstance(found, jwt.PyJWK) or code in ("not_ready", "unauthorized")
            assert code != "not_ready" or keys.why

    asyncio.run(ask())


@fuzz
@given(st.text(max_size=120) | st.text("ab:,= sha256tenantscopes\n#", max_size=120))
@example("a:sha256:" + "g" * 64)
@example("a:k tenant=" + "x" * 200)
def test_any_list_of_keys_is_read_or_refused(listed: str) -> None:
    """A mistake in it ends the start with its place, and not with a traceback."""
    with contextlib.suppress(BadKeys):
        assert ApiKeys(listed, "", Log()).find("no such key") is None

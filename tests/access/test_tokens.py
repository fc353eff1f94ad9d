"""Tokens: every way to be let in, and every way to try in vain."""

import base64
import io
import json
import time
from typing import Any

import jwt
import pytest
from cryptography.hazmat.primitives import serialization
from hypothesis import given
from hypothesis import strategies as st

from holdfast.domain.errors import HoldfastError
from holdfast.domain.ids import is_id
from holdfast.gateway import tokens
from holdfast.gateway.tokens import KeySet, Tokens, tenant_id
from holdfast.telemetry import Log
from tests.access.support import AUDIENCE, ISSUER, SECRET, Issuer, claims, issuer, token


def checker(secret: str = SECRET, at: Issuer | None = None, **more: Any) -> Tokens:
    keys = KeySet(at.url, Log(stream=io.StringIO())) if at else None
    return Tokens(secret, keys, **{"audience": AUDIENCE, "issuer": ISSUER, "leeway_s": 1, **more})


async def refusal(check: Tokens, text: str) -> HoldfastError:
    with pytest.raises(HoldfastError) as caught:
        await check.check(text)
    return caught.value


async def test_a_signed_token_says_who_is_there() -> None:
    """`sub` within `tenant`; scopes where it names any."""
    found = await checker().check(token(scope="read openid"))
    assert (found.subject, found.tenant, found.scopes) == ("carol", "acme:carol", {"read", "openid"})
    assert found.until == pytest.approx(time.time() + 601, abs=5)
    assert (await checker().check(token(tenant=None))).tenant == ":carol"
    assert (await checker().check(token())).scopes is None


def b64(data: Any) -> str:
    return base64.urlsafe_b64encode(json.dumps(data).encode()).rstrip(b"=").decode()


def forged(header: dict[str, Any], signature: str = "", **more: Any) -> str:
    return f"{b64(header)}.{b64(claims(**more))}.{signature}"


BAD = {
    "expired": lambda: token(exp=int(time.time()) - 60),
    "no end": lambda: token(exp=None),
    "not yet": lambda: token(nbf=int(time.time()) + 600),
    "another audience": lambda: token(aud="another"),
    "no audience": lambda: token(aud=None),
    "another issuer": lambda: token(iss="https://evil.example"),
    "no issuer": lambda: token(iss=None),
    "no subject": lambda: token(subject=None),
    "empty subject": lambda: token(subject=""),
    "tenant is a number": lambda: token(tenant=7),
    "scope is a list": lambda: token(scope=["read"]),
    "end is no number": lambda: forged({"alg": "HS256"}, exp="soon"),
    "another secret": lambda: token("another secret of more than 32 bytes"),
    "alg none": lambda: forged({"alg": "none"}),
    "alg None": lambda: forged({"alg": "NonE"}, "x"),
    "no alg": lambda: forged({"typ": "JWT"}, "x"),
    "alg is a list": lambda: forged({"alg": ["HS256"]}, "x"),
    "unsigned": lambda: forged({"alg": "HS256"}),
    "tampered": lambda: (lambda head, _, end: f"{head}.{b64(claims('root'))}.{end}")(*token().split(".")),
    "cut": lambda: token()[:-4],
    "not a token": lambda: "a.b.c",
    "empty parts": lambda: "..",
    "not ascii": lambda: "\u00e9.\u00e9.\u00e9",
    "unknown critical header": lambda: token(headers={"crit": ["exp2"], "exp2": 1}),
    "very long": lambda: token(more="x" * 20_000),
    "deep": lambda: f"{b64({'alg': 'HS256'})}.{base64.urlsafe_b64encode(b'[' * 9000).decode()}.x",
}


@pytest.mark.parametrize("name", BAD)
async def test_what_is_not_right_is_refused(name: str) -> None:
    """401 and why, never an exception that nobody foresaw."""
    error = await refusal(checker(), BAD[name]())
    assert error.code == "unauthorized"
    assert SECRET not in error.detail


async def test_an_audience_that_we_did_not_ask_for_is_not_ours() -> None:
    """A token for another service of the same issuer must not open this one."""
    error = await refusal(checker(audience=""), token())
    assert error.code == "unauthorized"
    assert await checker(audience="", issuer="").check(token(aud=None))


@pytest.mark.parametrize(
    "subject", ["a", "a:b", "a.b", "auth0|1", "x@y.z", "", "\u00fc", "\ud800", "a" * 200, "../x", "\0"]
)
def test_a_tenant_is_an_id(subject: str) -> None:
    """Whatever an issuer calls its users."""
    assert is_id(tenant_id("acme", subject))


@given(st.lists(st.tuples(st.text(max_size=90), st.text(max_size=90)), min_size=2, max_size=2, unique=True))
def test_two_subjects_are_two_tenants(two: list[tuple[str, str]]) -> None:
    """No two of them may see each other's runs, whatever they are called."""
    assert tenant_id(*two[0]) != tenant_id(*two[1])


async def test_public_keys_come_from_their_server() -> None:
    """RS256 by key id; a new key is found, and asked for once."""
    async with issuer() as at:
        first = at.add("one")
        check = checker(at=at)
        for _ in range(3):
            assert (await check.check(token(first, "RS256", {"kid": "one"}))).subject == "carol"
        assert (await check.check(token(first, "RS256"))).subject == "carol", "the only key needs no id"
        assert at.asked == 1


async def test_key_ids_that_are_not_there_cost_one_question(monkeypatch: pytest.MonkeyPatch) -> None:
    """Anybody can write a `kid` into a token: that must not become a flood at the issuer's."""
    async with issuer() as at:
        private = at.add("one")
        check = checker(at=at)
        for n in range(20):
            error = await refusal(check, token(private, "RS256", {"kid": f"k{n}"}))
            assert error.code == "unauthorized"
        assert at.asked == 1
        monkeypatch.setattr(tokens, "_AGAIN_S", 0.0)
        rotated = at.add("two")
        assert await check.check(token(rotated, "RS256", {"kid": "two"}))
        assert at.asked == 2


async def test_a_public_key_is_no_secret() -> None:
    """Who signs HS256 with the published key gets in where the algorithm is the token's choice."""
    async with issuer() as at:
        private = at.add("one")
        pem = private.public_key().public_bytes(
            serialization.Encoding.PEM, serialization.PublicFormat.SubjectPublicKeyInfo
        )
        head, body = b64({"alg": "HS256", "kid": "one"}), b64(claims())
        signed = jwt.algorithms.HMACAlgorithm(jwt.algorithms.HMACAlgorithm.SHA256)
        signature = base64.urlsafe_b64encode(signed.sign(f"{head}.{body}".encode(), pem)).rstrip(b"=").decode()
        for secret in ("", SECRET):
            assert (await refusal(checker(secret, at), f"{head}.{body}.{signature}")).code == "unauthorized"
        other = at.add("two")
        assert (await refusal(checker(at=at), token(other, "RS256", {"kid": "one"}))).code == "unauthorized"
        assert (await refusal(checker(at=at), token(private, "RS512", {"kid": "one"}))).code == "unauthorized"


@pytest.mark.parametrize("fault", ["refused", "status", "not json", "no keys", "secret keys", "too large", "silent"])
async def test_without_keys_nothing_is_let_in_and_it_is_said(fault: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """503 with the cause, in bounded time; a shared secret's tokens work meanwhile."""
    monkeypatch.setattr(tokens, "_FETCH_S", 0.3)
    async with issuer() as at:
        private = at.add("one")
        text = token(private, "RS256", {"kid": "one"})
        match fault:
            case "refused":
                at.url = "http://127.0.0.1:9/keys"
            case "status":
                at.status = 500
            case "silent":
                at.silent = True
            case _:
                at.body = {
                    "not json": b"<html>",
                    "no keys": b'{"keys": []}',
                    "secret keys": json.dumps({"keys": [{"kty": "oct", "k": "c2VjcmV0", "kid": "one"}]}).encode(),
                    "too large": b" " * 2_000_000,
                }[fault]
        check = checker(at=at)
        error = await refusal(check, text)
        assert error.code == "not_ready"
        assert at.url in error.detail
        assert await check.check(token())


async def test_keys_are_used_while_their_server_is_away(monkeypatch: pytest.MonkeyPatch) -> None:
    """An issuer that restarts logs nobody out; after a day without it its keys are worth nothing."""
    async with issuer() as at:
        private = at.add("one")
        check, text = checker(at=at), token(private, "RS256", {"kid": "one"})
        assert await check.check(text)
        at.status = 500
        monkeypatch.setattr(tokens, "_AGAIN_S", 0.0)
        monkeypatch.setattr(tokens, "_FRESH_S", 0.0)
        assert await check.check(text)
        assert at.asked >= 2
        monkeypatch.setattr(tokens, "_STALE_S", 0.0)
        assert (await refusal(check, text)).code == "not_ready"

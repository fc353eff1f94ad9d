"""Keys and tokens do not get into what people read: log lines, errors, traces, tool results."""

from __future__ import annotations

import json
import time
from functools import partial
from urllib.parse import quote

import pytest

from holdfast.domain import secrets
from holdfast.domain.errors import run_error
from holdfast.domain.secrets import MASKED, Secrets

KEY = 'k"ey\\with/odd+signs'
ENVIRONMENT = {
    "HOLDFAST_MODEL_KEY": KEY,
    "OPENAI_API_KEY": "none",
    "GITHUB_TOKEN": "ghp_0123456789",
    "DB_PASSWORD": "correct horse",
    "AWS_SECRET_ACCESS_KEY": "aws/secret+access",
    "HOLDFAST_API_KEYS": "ann:key-of-ann-1,bob:key-of-bob-1",
    "HOME": "/home/somebody",
    "KEYBOARD": "qwerty-layout",
}


@pytest.fixture
def known():
    return Secrets(secrets.of_environment(ENVIRONMENT))


@pytest.fixture
def learned():
    secrets.learn(ENVIRONMENT)
    yield
    secrets.learn({})


@pytest.mark.parametrize("form", [str, repr, json.dumps, partial(quote, safe="")], ids=["str", "repr", "json", "url"])
@pytest.mark.parametrize("value", [KEY, "ghp_0123456789", "correct horse", "aws/secret+access", "key-of-bob-1"])
def test_known_secrets_are_masked_in_every_form(known, form, value):
    """An exception's repr, a JSON body and a URL each write the same key differently."""
    masked = known.mask(f"failed with {form(value)} at 12:00")
    assert masked.replace('"', "").replace("'", "") == f"failed with {MASKED} at 12:00"


def test_short_values_and_other_variables_are_left(known):
    """OPENAI_API_KEY=none must not mask the word none."""
    text = "none of /home/somebody has a qwerty-layout"
    assert known.mask(text) == text


@pytest.mark.parametrize(
    ("text", "masked"),
    [
        ("Authorization: Bearer abcdefgh.ijkl", "Authorization: Bearer [masked]"),
        ("incorrect API key provided: sk-proj-0123456789abcdef.", "incorrect API key provided: [masked]."),
        ("GET /v1?api_key=0123456789&x=1", "GET /v1?api_key=[masked]&x=1"),
        ('{"password": "hunter2hunter2", "user": "u"}', '{"password": "[masked]", "user": "u"}'),
        ("redis://user:pa55@host:6379/0", "redis://user:[masked]@host:6379/0"),
        ("Basic dXNlcjpwYXNzd29yZA==", "Basic [masked]"),
        ("DB_PASSWORD=hunter2hunter2 is wrong", "DB_PASSWORD=[masked] is wrong"),
        ("login with secret=hunter2hunter2 failed", "login with secret=[masked] failed"),
        ("aws_secret_access_key = wJalrXUtnFEMI", "aws_secret_access_key = [masked]"),
        ("'passwd': 'hunter2hunter2'", "'passwd': '[masked]'"),
        ("OPENAI_API_KEY=abcdefgh12", "OPENAI_API_KEY=[masked]"),
        ("refresh_token: 0123456789ab", "refresh_token: [masked]"),
        ("push with ghp_0123456789abcdefghij0123 failed", "push with [masked] failed"),
        ("the key AKIAIOSFODNN7EXAMPLE is not active", "the key [masked] is not active"),
        ("(xoxb-0123456789-abcdef)", "([masked])"),
        ("token eyJhbGciOiJI.eyJzdWIiOiJ1.c2ln has expired", "token [masked] has expired"),
    ],
)
def test_what_is_unmistakably_a_secret_is_masked(text, masked):
    """Keys of users and of other services are in no variable of ours."""
    assert Secrets().mask(text) == masked
    assert Secrets().mask(masked) == masked


@pytest.mark.parametrize(
    "text",
    [
        "a bearer of bad news",
        "task-management-is-not-a-key",
        "http://127.0.0.1:8080/v1",
        "max_tokens=100000000",
        "the password: yes",
        "secretary=appointed since then",
        "access_tokens=1000000000",
        "ghost_writers and eyJ.eyJ.x",
        "s_GHVqsk-session and r_0sk-abcdefghijklmnopq",
    ],
)
def test_ordinary_text_is_left(text):
    """A mask over what is no secret hides what an operator needs."""
    assert Secrets().mask(text) == text


@pytest.mark.parametrize(
    "piece",
    [
        "bearer ",
        "sk-",
        "://a:",
        "password=",
        "api_key: ",
        " " * 4,
        "password  ",
        "a",
        "eyJ",
        "eyJaaaaaaaa.",
        "xoxb-",
        "gho_",
    ],
)
def test_masking_takes_linear_time(piece):
    """A tool's output may be hostile: a pattern that backtracks would block the loop."""

    def took(n: int) -> float:
        began = time.perf_counter()
        Secrets(["0123456789"]).mask(piece * n)
        return time.perf_counter() - began

    small = 4096 // len(piece)
    assert min(took(small * 64) for _ in range(3)) < 64 * 8 * max(0.0005, min(took(small) for _ in range(3)))


def test_values_keep_their_shape(known):
    """A tool's result is masked inside, and is the very same object where nothing was."""
    clean = {"a": [1, "two", None], "b": ("x", 2.5)}
    assert known.mask_value(clean) is clean
    found = known.mask_value({"a": [1, f"= {KEY}"], KEY: ({"deep": "ghp_0123456789"},)})
    assert found == {"a": [1, "= [masked]"], MASKED: [{"deep": MASKED}]}


def test_what_has_no_json_is_left_to_who_stores_it(known):
    """A tool may return an object whose __str__ raises."""

    class Broken:
        def __str__(self):
            raise ValueError("no")

    broken = Broken()
    assert known.mask_value(broken) is broken


def test_errors_of_runs_are_masked_before_they_are_cut(learned):
    """The first half of a key, left by the cut at 2,000 characters, is still most of a key."""
    error = run_error("model_error", "x" * 1995 + " ghp_0123456789", "E: ghp_0123456789", "", retryable=False)
    assert "ghp" not in json.dumps(error)
    assert len(error["message"]) <= 2000

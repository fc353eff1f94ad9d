"""Bad input over real HTTP: a clear error of the catalogue, nothing lost, the next request served at once (P8, P10).

Every case is sent while a run is active in session `busy`. A refusal must leave that run as it is, /livez must answer
at once, and the log must not tell of anything that nobody foresaw.
"""

import json
import socket
import time
from collections.abc import Iterator, Mapping
from types import MappingProxyType
from typing import Any, NamedTuple

import httpx2
import pytest

from holdfast.domain.errors import CATALOGUE
from tests.history.site import Site

MIB = 1024 * 1024
LIVE_S = 1.0
DEEP = 100_000
OPENAI_CODES = {"unknown_agent": "model_not_found"}


class Case(NamedTuple):
    """A request, and the code of the catalogue that refuses it."""

    name: str
    code: str
    method: str
    path: str
    body: Any = None  # bytes as they are, else JSON
    headers: Mapping[str, str] = MappingProxyType({})


def post(name: str, body: Any, code: str = "invalid_request", path: str = "/api/runs", **headers: str) -> Case:
    return Case(name, code, "POST", path, body, {k.replace("_", "-"): v for k, v in headers.items()})


def get(name: str, path: str, code: str = "invalid_request", **headers: str) -> Case:
    return Case(name, code, "GET", path, None, {k.replace("_", "-"): v for k, v in headers.items()})


BUSY = {"input": "x", "session": "busy"}
LONG = "a" * 129

UNKNOWN = [
    get("run", "/api/runs/r_nobody", "unknown_run"),
    get("log", "/api/runs/r_nobody/events", "unknown_run"),
    get("inspection", "/api/runs/r_nobody/inspect", "unknown_run"),
    post("run to stop", None, "unknown_run", "/api/runs/r_nobody/stop"),
    post("run to steer", {"input": "x"}, "unknown_run", "/api/runs/r_nobody/steer"),
    Case("run to edit", "unknown_run", "PATCH", "/api/runs/r_nobody", {"input": "x"}),
    get("session", "/api/sessions/nobody", "unknown_session"),
    post("session to stop", None, "unknown_session", "/api/sessions/nobody/stop"),
    Case("session to delete", "unknown_session", "DELETE", "/api/sessions/nobody"),
    post("agent", {**BUSY, "agent": "nobody"}, "unknown_agent"),
    post("model", {"prompt": "x", "model": "nobody"}, "unknown_agent", "/v1/chat/completions"),
    post("policy", {**BUSY, "on_busy": "later"}),
    post("policy under v1", {"prompt": "x", "on_busy": "later"}, path="/v1/chat/completions"),
    get("state", "/api/runs?state=lost"),
    get("path", "/api/nothing", "not_found"),
    get("path under v1", "/v1/nothing", "not_found"),
    get("path with dots", "/api/runs/../../etc/passwd", "not_found"),
]

OFFSETS = ["-1", "abc", "1-2-3", "1e3", "0x10", "9" * 16, "١٢", "1 ", "7-", "", "%00", "NaN"]

BODIES: dict[str, bytes] = {
    "empty": b"",
    "cut off": b'{"input": "x"',
    "a list": b"[]",
    "null": b"null",
    "a number": b"1",
    "NaN": b'{"input": NaN}',
    "NaN in metadata": b'{"input": "x", "metadata": {"a": NaN}}',
    "infinity": b'{"input": "x", "deadline_s": Infinity}',
    "invalid UTF-8": b'{"input": "\xff\xfe"}',
    "UTF-16": '{"input": "x"}'.encode("utf-16"),
    "a byte order mark": b'\xef\xbb\xbf{"input": "x"}',
    "an unpaired surrogate": b'{"input": "\\ud800"}',
    "a bare control character": b'{"input": "a\nb"}',
    "single quotes": b"{'input': 'x'}",
    "a comment": b'{"input": "x" /* why */}',
    "two documents": b'{"input": "x"}{"input": "y"}',
    "deep lists": b"[" * DEEP,
    "deep objects": b'{"a":' * DEEP,
    "deep metadata": b'{"input": "x", "metadata": {"a": ' + b"[" * 3000 + b"]" * 3000 + b"}}",
}

WRONG = [
    {},
    {"session": "busy"},
    {**BUSY, "input": None},
    {**BUSY, "input": 1},
    {**BUSY, "input": ["x"]},
    {**BUSY, "input": ""},
    {**BUSY, "session": 7},
    {**BUSY, "agent": ["quick"]},
    {**BUSY, "on_busy": ["supersede"]},
    {**BUSY, "on_disconnect": "maybe"},
    {**BUSY, "deadline_s": -1},
    {**BUSY, "deadline_s": 0},
    {**BUSY, "deadline_s": 1e308},
    {**BUSY, "deadline_s": 10**400},
    {**BUSY, "deadline_s": "10"},
    {**BUSY, "deadline_s": True},
    {**BUSY, "metadata": []},
    {**BUSY, "metadata": {"a": "x" * 70_000}},
    {**BUSY, "unknown": 1},
    {**BUSY, "input": "x" * (256 * 1024 + 1)},
    {**BUSY, "input": "ü" * (128 * 1024 + 1)},
]

CHAT = [
    {},
    {"messages": []},
    {"messages": "hello"},
    {"messages": [1]},
    {"messages": [{"role": "user"}]},
    {"messages": [{"role": "user", "content": ""}]},
    {"messages": [{"role": "user", "content": 7}]},
    {"messages": [{"role": "robot", "content": "x"}, {"role": "user", "content": "x"}]},
    {"messages": [{"role": "user", "content": "x"}, {"role": "assistant", "content": "y"}]},
    {"messages": [{"role": "user", "content": [{"type": "image_url", "image_url": {"url": "x"}}]}]},
    {"messages": [{"role": "user", "content": "x"}], "prompt": "x"},
    {"prompt": "x", "n": 2},
    {"prompt": "x", "n": 10**30},
    {"prompt": "x", "temperature": "hot"},
    {"prompt": "x", "max_tokens": -1},
    {"prompt": "x", "max_tokens": 10**30},
    {"prompt": "x", "seed": 10**30},
    {"prompt": "x", "tools": [{"type": "function"}]},
    {"messages": [{"role": "tool", "tool_call_id": "x", "content": "y"}]},
    {"prompt": "x", "response_format": {"type": "yaml"}},
    {"prompt": "x", "response_format": {"type": "json_schema"}},
    {"prompt": "x", "stream": "yes"},
    {"prompt": "x", "stop": [1]},
    {"prompt": "x" * (256 * 1024 + 1)},
]

BAD_IDS = [LONG, "a b", "ü", "a/b", "a\\b", "a?b", "a#b", "😀", "a\u0000b", "..%2f..", "%", "a\nb"]

QUERIES = [
    get("limit zero", "/api/runs?limit=0"),
    get("limit below zero", "/api/runs?limit=-1"),
    get("limit in words", "/api/runs?limit=many"),
    get("limit of another script", "/api/runs?limit=%D9%A1"),
    get("limit of a fraction", "/api/sessions?limit=1.5"),
    get("session that is no id", "/api/runs?session=a%20b"),
    get("session without a name", "/api/runs?session="),
    get("session that is long", f"/api/runs?session={LONG}"),
    get("page after no id", "/api/runs?after=a%20b"),
    get("page after a long id", f"/api/sessions?after={LONG}"),
    post("wait below zero", None, path="/api/runs/r_x/stop?wait_s=-1"),
    post("wait in words", None, path="/api/runs/r_x/stop?wait_s=soon"),
    post("wait for NaN", None, path="/api/runs/r_x/stop?wait_s=nan"),
]

METHODS = [
    Case(f"{method} {path}", "method_not_allowed", method, path)
    for method, path in [
        ("PUT", "/api/runs"),
        ("DELETE", "/api/runs"),
        ("DELETE", "/api/runs/r_x"),
        ("POST", "/api/runs/r_x"),
        ("GET", "/api/runs/r_x/stop"),
        ("POST", "/api/runs/r_x/events"),
        ("POST", "/api/sessions"),
        ("PATCH", "/api/sessions/busy"),
        ("GET", "/v1/chat/completions"),
        ("POST", "/v1/models"),
        ("POST", "/livez"),
        ("TRACE", "/api/runs"),
    ]
]

FOREIGN = [
    post("host", BUSY, "forbidden_origin", host="evil.example"),
    post("host with a port", BUSY, "forbidden_origin", host="evil.example:8484"),
    post("host like ours", BUSY, "forbidden_origin", host="localhost.evil.example"),
    post("host of an address", BUSY, "forbidden_origin", host="10.1.2.3"),
    post("host that is none", BUSY, "forbidden_origin", host="[::1"),
    post("origin", BUSY, "forbidden_origin", origin="https://evil.example"),
    post("origin null", BUSY, "forbidden_origin", origin="null"),
    post("origin of a file", BUSY, "forbidden_origin", origin="file://"),
    post("origin under v1", {"prompt": "x"}, "forbidden_origin", "/v1/chat/completions", origin="https://evil.example"),
    Case("origin that reads", "forbidden_origin", "GET", "/api/sessions", None, {"origin": "https://evil.example"}),
]

HEADERS = [
    post("key too long", BUSY, Idempotency_Key="k" * 256),
    post("session too long", {"prompt": "x"}, path="/v1/chat/completions", X_Session_Id=LONG),
    post("session with blanks", {"prompt": "x"}, path="/v1/chat/completions", X_Session_Id="a b"),
]

CASES = [
    *(case._replace(name=f"unknown {case.name}") for case in UNKNOWN),
    *QUERIES,
    *METHODS,
    *(case._replace(name=f"foreign {case.name}") for case in FOREIGN),
    *HEADERS,
    *(post(f"body {name}", body) for name, body in BODIES.items()),
    *(post(f"body {name} under v1", body, path="/v1/chat/completions") for name, body in BODIES.items()),
    *(post(f"body {name} to steer", body, path="/api/runs/r_x/steer") for name, body in BODIES.items()),
    *(post(f"field {n} {json.dumps(body)[:40]}", body) for n, body in enumerate(WRONG)),
    *(post(f"chat {n} {json.dumps(body)[:40]}", body, path="/v1/chat/completions") for n, body in enumerate(CHAT)),
    *(post(f"session id {bad!r:.20}", {**BUSY, "session": bad}) for bad in BAD_IDS),
]


@pytest.fixture(autouse=True)
def undisturbed(site: Site, http: httpx2.Client, active: str) -> Iterator[None]:
    """The active run is as it was, the server answers at once, and its log tells of nothing unforeseen."""
    before = http.get(f"/api/runs/{active}").json()
    yield
    began = time.monotonic()
    with httpx2.Client(base_url=site.url, timeout=2.0) as fresh:
        assert fresh.get("/livez").status_code == 200
    assert time.monotonic() - began < LIVE_S
    after = http.get(f"/api/runs/{active}").json()
    changing = ("timings", "due_in_ms", "seq")
    assert {k: v for k, v in after.items() if k not in changing} == {
        k: v for k, v in before.items() if k not in changing
    }
    assert (after["state"], after["stopping"]) == ("running", None)
    site.assert_quiet()


@pytest.mark.parametrize("case", CASES, ids=lambda case: case.name)
def test_bad_input_is_refused_with_a_code_of_the_catalogue(http: httpx2.Client, case: Case) -> None:
    """Whatever is wrong is said in a form that a program can read and a person can act on."""
    content = case.body if isinstance(case.body, bytes) or case.body is None else json.dumps(case.body).encode()
    assert_refused(http.request(case.method, case.path, content=content, headers=case.headers), case.code, case.path)


@pytest.mark.parametrize("after", OFFSETS)
def test_bad_offset_is_refused(http: httpx2.Client, active: str, after: str) -> None:
    """A reader that does not know where it is must not be given a part of a log as if it did."""
    for accept in ("text/event-stream", "application/x-ndjson", "application/json"):
        answer = http.get(f"/api/runs/{active}/events", params={"after": after}, headers={"Accept": accept})
        assert_refused(answer, "invalid_offset")


@pytest.mark.parametrize("bad", BAD_IDS)
def test_bad_id_in_a_path_is_refused(http: httpx2.Client, bad: str) -> None:
    """An id that cannot be one is told apart from one that is not there, and never reaches the store."""
    quoted = "".join(f"%{byte:02X}" for byte in bad.encode())
    for path in (f"/api/runs/{quoted}", f"/api/runs/{quoted}/events", f"/api/sessions/{quoted}"):
        answer = http.get(path)
        assert answer.json()["code"] in ("invalid_request", "not_found"), answer.text
        assert_refused(answer, answer.json()["code"])


@pytest.mark.parametrize("chunked", [False, True])
def test_body_over_the_limit_is_refused(http: httpx2.Client, chunked: bool) -> None:
    """A body that is too large is refused while it comes, whether or not it says how large it is."""
    piece = b'{"input": "' + b"x" * (MIB - 11)
    pieces = [piece, *[b"x" * MIB] * 9]
    answer = http.post("/api/runs", content=iter(pieces) if chunked else b"".join(pieces))
    assert_refused(answer, "body_too_large")


def test_declared_length_that_lies_costs_nothing(site: Site) -> None:
    """A client that announces more than it sends, or sends more than it announced, is refused or dropped."""
    head = "POST /api/runs HTTP/1.1\r\nHost: localhost\r\nContent-Length: {}\r\n\r\n"
    assert b" 413 " in _raw(site, head.format(9 * MIB).encode(), limit_s=3.0)
    assert _raw(site, head.format(100).encode() + b'{"input": "x"', close=True) == b""
    more = _raw(site, head.format(2).encode() + b"{} and what nobody announced\r\n\r\n")
    assert more[:12] in (b"HTTP/1.1 422", b"HTTP/1.1 400"), more
    for wrong in ("-1", "1e3", "9" * 30, "ten", "5, 6"):
        said = _raw(site, head.format(wrong).encode() + b"{}")
        assert said[:12] in (b"HTTP/1.1 400", b"HTTP/1.1 413"), (wrong, said)


def test_idempotency_key_names_one_body(http: httpx2.Client) -> None:
    """A key repeats its answer, and refuses another body instead of guessing which was meant."""
    body = {"input": "x", "session": "keyed"}
    for key in ("k-1", "k" * 255, "spaced key", "{}"):
        first = http.post("/api/runs", json=body, headers={"Idempotency-Key": key})
        again = http.post("/api/runs", json=body, headers={"Idempotency-Key": key})
        assert (first.status_code, again.status_code) == (201, 201), again.text
        assert again.json()["id"] == first.json()["id"]
        assert again.headers["idempotent-replayed"] == "true"
        other = http.post("/api/runs", json={**body, "input": "y"}, headers={"Idempotency-Key": key})
        assert_refused(other, "idempotency_conflict")
        body["session"] += "x"


@pytest.mark.parametrize("code", ["session_busy"])
def test_refused_prompt_leaves_the_active_run_alone(http: httpx2.Client, code: str) -> None:
    """A prompt that is refused has not superseded anybody on its way."""
    assert_refused(http.post("/api/runs", json={**BUSY, "on_busy": "reject"}), code)
    queued = [http.post("/api/runs", json={**BUSY, "on_busy": "enqueue"}) for _ in range(6)]
    assert [answer.status_code for answer in queued].count(201) == 4
    assert_refused(queued[-1], code)
    for answer in queued[:4]:
        assert http.post(f"/api/runs/{answer.json()['id']}/stop").status_code == 202


def test_last_of_duplicated_keys_holds_as_in_every_json_parser(http: httpx2.Client) -> None:
    """The value that counts is the one that a client's own parser would have shown."""
    made = http.post("/api/runs", content=b'{"input": "one", "session": "d1", "input": "two"}')
    assert made.status_code == 201
    assert made.json()["input"] == "two"


@pytest.mark.parametrize("text", ["\u0000", "a\u0000b", "\u2028", "\ufffe", "😀", "\\", "x" * 1000, "&<>\"'"])
def test_odd_but_valid_input_is_kept_as_it_is(http: httpx2.Client, text: str) -> None:
    """What is allowed is neither changed nor cut."""
    made = http.post("/api/runs", json={"input": text, "metadata": {text[:50]: [text, 1e308, -0.0, 2**53]}})
    assert made.status_code == 201, made.text
    found = http.get(made.headers["location"]).json()
    assert found["input"] == text
    assert found["metadata"] == {text[:50]: [text, 1e308, -0.0, 2**53]}
    page = http.get(f"{made.headers['location']}/events", headers={"Accept": "application/json"}).json()
    assert page["events"][0]["input"] == text


CHUNKED = b"POST /api/runs HTTP/1.1\r\nHost: localhost\r\nTransfer-Encoding: chunked\r\n"
GARBAGE = {
    "nothing": b"",
    "random": bytes(range(256)) * 4,
    "TLS": bytes.fromhex("16030100c8010000c40303") + b"\x00" * 190,
    "HTTP/2": b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n",
    "no version": b"GET /livez\r\n\r\n",
    "wrong version": b"GET /livez HTTP/9.9\r\nHost: localhost\r\n\r\n",
    "no colon": b"GET /livez HTTP/1.1\r\nHost localhost\r\n\r\n",
    "blank header": b"GET /livez HTTP/1.1\r\n: x\r\nHost: localhost\r\n\r\n",
    "huge head": b"GET /livez HTTP/1.1\r\nHost: localhost\r\nX: " + b"x" * 100_000 + b"\r\n\r\n",
    "many headers": b"GET /livez HTTP/1.1\r\nHost: localhost\r\n" + b"X: y\r\n" * 20_000 + b"\r\n",
    "long path": b"GET /" + b"x" * 70_000 + b" HTTP/1.1\r\nHost: localhost\r\n\r\n",
    "bad chunk": CHUNKED + b"\r\nzz\r\n{}\r\n0\r\n\r\n",
    "both lengths": CHUNKED + b"Content-Length: 3\r\n\r\n0\r\n\r\n",
    "unknown method": b"KELP /api/runs HTTP/1.1\r\nHost: localhost\r\n\r\n",
    "no host": b"GET /api/runs HTTP/1.1\r\n\r\n",
    "two hosts": b"GET /api/runs HTTP/1.1\r\nHost: localhost\r\nHost: evil.example\r\n\r\n",
    "a proxy's target": b"GET http://evil.example/api/runs HTTP/1.1\r\nHost: evil.example\r\n\r\n",
    "a star": b"OPTIONS * HTTP/1.1\r\nHost: localhost\r\n\r\n",
    "connect": b"CONNECT evil.example:443 HTTP/1.1\r\nHost: localhost\r\n\r\n",
    "a WebSocket elsewhere": b"GET /api/runs HTTP/1.1\r\nHost: localhost\r\nUpgrade: websocket\r\n"
    b"Connection: Upgrade\r\nSec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==\r\nSec-WebSocket-Version: 13\r\n\r\n",
    "a WebSocket of a dead version": b"GET /api/ws HTTP/1.1\r\nHost: localhost\r\nUpgrade: websocket\r\n"
    b"Connection: Upgrade\r\nSec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==\r\nSec-WebSocket-Version: 8\r\n\r\n",
    "a WebSocket without a key": b"GET /api/ws HTTP/1.1\r\nHost: localhost\r\nUpgrade: websocket\r\n"
    b"Connection: Upgrade\r\nSec-WebSocket-Version: 13\r\n\r\n",
    "bytes in the path": b"GET /api/runs/\xff\xfe HTTP/1.1\r\nHost: localhost\r\n\r\n",
    "bytes in a header": b"GET /api/runs HTTP/1.1\r\nHost: localhost\r\nX-Session-Id: \xff\xfe\r\nAccept: \xff\r\n\r\n",
    "a broken escape": b"GET /api/runs/%zz%f HTTP/1.1\r\nHost: localhost\r\n\r\n",
    "a query of bytes": b"GET /api/runs?limit=%ff&after=%ff%fe HTTP/1.1\r\nHost: localhost\r\n\r\n",
}


@pytest.mark.parametrize("sent", GARBAGE.values(), ids=GARBAGE.keys())
def test_garbage_on_the_socket_is_answered_or_dropped(site: Site, sent: bytes) -> None:
    """What is no request of ours ends in a status below 500 or a closed connection, never in silence."""
    said = _raw(site, sent + (b"" if sent else b"\r\n" * 40), close=not sent)
    assert not said or said[:12] in (b"HTTP/1.1 200", *(f"HTTP/1.1 {n}".encode() for n in range(400, 500))), said[:300]


@pytest.mark.parametrize("cut", [1, 10, 30, 60, 80, 100, 120])
def test_half_a_request_is_forgotten(site: Site, http: httpx2.Client, cut: int) -> None:
    """A client that breaks off in the middle of its request has asked for nothing."""
    body = json.dumps({"input": "half", "session": "half"}).encode()
    whole = b"POST /api/runs HTTP/1.1\r\nHost: localhost\r\nContent-Length: %d\r\nX-Filler: abcdefghij\r\n\r\n" % len(
        body
    )
    whole += body
    assert cut < len(whole)
    _raw(site, whole[:cut], close=True)
    assert http.get("/api/sessions/half").status_code == 404


def assert_refused(answer: httpx2.Response, code: str, path: str = "") -> None:
    """A whole error of the catalogue, in the shape that the path speaks."""
    entry = CATALOGUE[code]
    assert answer.status_code == entry.status, f"{answer.status_code} {answer.text[:500]}"
    body = answer.json()
    if path.startswith("/v1/"):
        assert answer.headers["content-type"].startswith("application/json")
        assert body["error"]["code"] == OPENAI_CODES.get(code, code)
        assert body["error"]["message"]
        assert body["error"]["type"] == "invalid_request_error"
        return
    assert answer.headers["content-type"] == "application/problem+json"
    assert (body["code"], body["status"], body["retryable"]) == (code, entry.status, entry.retryable)
    assert body["detail"]
    assert body["remedy"]
    if code == "method_not_allowed":
        assert answer.headers["allow"]


def _raw(site: Site, sent: bytes, *, close: bool = False, limit_s: float = 2.0) -> bytes:
    """What is answered to these bytes; with `close`, they are all that is ever sent."""
    with socket.create_connection(("127.0.0.1", site.runtime.server.port), timeout=limit_s) as sock:
        try:
            sock.sendall(sent)
            if close:
                sock.shutdown(socket.SHUT_WR)
                return b""
            return sock.recv(65_536)
        except (ConnectionResetError, BrokenPipeError):
            return b""

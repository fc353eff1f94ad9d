"""The clients that people have: OpenAI's library, curl, and the one that goes away."""

import json
import subprocess
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import openai
import pytest

from tests.system.support import FULL, System, check_log, frames, until

UPSTREAM_S = 0.3 if FULL else 2.0  # the figure of the promise needs a machine that is not shared

pytestmark = [pytest.mark.slow, pytest.mark.timeout(40)]


@pytest.fixture
def client(system: System) -> Iterator[openai.OpenAI]:
    url = f"http://127.0.0.1:{system.http.port}/v1"
    with openai.OpenAI(base_url=url, api_key="none", max_retries=0, timeout=20) as client:
        yield client


def say(script: str) -> list[Any]:
    return [{"role": "user", "content": script}]


def test_openai_streams_every_token_and_the_usage(client: openai.OpenAI):
    """The library that most people already use sees one more model."""
    with client.chat.completions.create(
        model="diver", messages=say("!tokens n=50 rate=500"), stream=True, stream_options={"include_usage": True}
    ) as stream:
        chunks = list(stream)
    text = "".join(c.choices[0].delta.content or "" for c in chunks if c.choices)
    assert text == "".join(f"t{i} " for i in range(1, 51))
    assert [c.choices[0].finish_reason for c in chunks if c.choices and c.choices[0].finish_reason] == ["stop"]
    assert chunks[-1].usage is not None
    assert chunks[-1].usage.completion_tokens == 50


def test_openai_gets_a_whole_answer(client: openai.OpenAI):
    """Not streamed, the same run: a tool is called on the way."""
    answer = client.chat.completions.create(
        model="diver", messages=say('!tool echo {"text": "x"}\n!say all of it'), extra_body={"metadata": {"who": "us"}}
    )
    assert answer.choices[0].message.content == "all of it"
    assert answer.usage is not None
    assert answer.usage.total_tokens > 0
    assert [model.id for model in client.models.list()] == ["diver", "ticker"]
    assert client.models.retrieve("ticker").id == "ticker"
    with pytest.raises(openai.NotFoundError) as refused:
        client.models.retrieve("nobody")
    assert refused.value.code == "model_not_found"


def test_openai_with_a_session_leaves_the_history_to_the_server(system: System, client: openai.OpenAI):
    """The second request brings one message, and the model is given both turns."""
    headers = {"X-Session-Id": "openai-session"}
    for script in ("!say one", "!say two"):
        client.chat.completions.create(model="diver", messages=say(script), extra_headers=headers)
    given = system.model.stats()["last_request"]["messages"]
    assert [(m["role"], m["content"]) for m in given if m["role"] != "system"] == [
        ("user", "!say one"),
        ("assistant", "one"),
        ("user", "!say two"),
    ]
    messages = system.http.get("/api/sessions/openai-session")["messages"]
    assert [m["text"] for m in messages] == ["!say one", "one", "!say two", "two"]


def test_openai_s_system_message_and_the_agent_s_instructions_are_one(system: System, client: openai.OpenAI):
    """F63: many models' templates refuse a second system message, or one that is not the first."""
    headers = {"X-Session-Id": "one-system"}
    kind = {"role": "system", "content": "be kind"}
    for messages in ([kind, *say("!say one")], [*say("!say one"), kind, *say("!say two")]):
        client.chat.completions.create(model="diver", messages=messages, extra_headers=headers)
        given = system.model.stats()["last_request"]["messages"]
        assert [n for n, m in enumerate(given) if m["role"] in ("system", "developer")] == [0]
        assert given[0]["content"].endswith("be kind")
        assert given[0]["content"] != "be kind"


def test_openai_hears_that_a_second_prompt_superseded_its_stream(client: openai.OpenAI):
    """A stream that ends because of another prompt ends with an error, not as if it were complete."""
    headers = {"X-Session-Id": "superseded"}
    with client.chat.completions.create(
        model="diver", messages=say("!tokens n=100000 rate=50"), stream=True, extra_headers=headers
    ) as stream:
        chunks = iter(stream)
        while not next(chunks).choices[0].delta.content:
            pass
        second = client.chat.completions.create(model="diver", messages=say("!say mine"), extra_headers=headers)
        assert second.choices[0].message.content == "mine"
        with pytest.raises(openai.APIError) as caught:
            list(chunks)
    assert (caught.value.type, caught.value.code) == ("run_cancelled", "superseded")


def test_openai_gets_a_status_for_a_run_that_did_not_complete(system: System, client: openai.OpenAI):
    """Not streamed there is a status: 409 for a stop, 502 for a model that fails."""
    with pytest.raises(openai.InternalServerError) as failed:
        client.chat.completions.create(model="diver", messages=say("!status code=400"))
    assert (failed.value.status_code, failed.value.code) == (502, "model_error")
    with ThreadPoolExecutor(1) as pool:
        body = {"messages": say("!first_token delay=60")}
        call = pool.submit(system.http.ask, "POST", "/v1/chat/completions", body, {"X-Session-Id": "stopped"})
        until(lambda: system.http.ask("GET", "/api/sessions/stopped")[0] == 200, "the run is there")
        assert system.http.ask("POST", "/api/sessions/stopped/stop")[0] == 202
        status, said = call.result(10)
    assert (status, said["error"]["code"]) == (409, "stopped")


def test_curl_starts_and_streams_in_one_request_or_starts_stops_and_reads(system: System):
    """The lines of the README, with our port."""
    url = f"http://127.0.0.1:{system.http.port}/api/runs"
    streamed = _curl(url, "-H", "Accept: text/event-stream", "-d", json.dumps({"input": "!say hello"}))
    events = [json.loads(line[6:]) for line in streamed.splitlines() if line.startswith("data: ")]
    check_log(events)
    assert events[-1]["output"] == "hello"

    run = json.loads(_curl(url, "-d", json.dumps({"input": "!tokens n=1000", "session": "s1"})))["id"]
    stopped = json.loads(_curl("-X", "POST", f"{url}/{run}/stop?wait_s=5"))
    assert (stopped["state"], stopped["reason"]) == ("cancelled", "stopped")
    read = _curl(f"{url}/{run}/events?after=0")
    assert "event: run.cancelled" in read
    assert json.loads(read.strip().rpartition("data: ")[2])["receipt"] == stopped["receipt"]


def _curl(*arguments: str) -> str:
    return subprocess.run(["curl", "-sSN", *arguments], capture_output=True, text=True, timeout=20, check=True).stdout


@pytest.mark.parametrize("stream", [True, False], ids=["stream", "whole"])
@pytest.mark.parametrize("script", ["!slow_headers for=60", "!first_token delay=60", "!stall after=3 for=600"])
def test_a_chat_completion_whose_client_leaves_cancels_its_run_and_the_model(
    system: System, script: str, *, stream: bool
):
    """Who closes the tab of an ordinary chat pays for no more tokens, in whatever phase the model is."""
    session = f"leaves-{stream}-{script.split()[0][1:]}"
    run = _leave_chat(system, script, session, stream=stream)
    left = time.monotonic()
    until(lambda: system.model.stats()["open"] == 0, "the model's socket is closed", UPSTREAM_S, every_s=0.002)
    record = system.end(run)
    assert (record["state"], record["reason"]) == ("cancelled", "client_disconnect")
    assert time.monotonic() - left < 1.0 + UPSTREAM_S
    assert record["receipt"]["upstream_closed_ms"] is not None
    system.prompt_works(session)


def test_a_chat_completion_may_ask_to_go_on_without_its_client(system: System):
    """`on_disconnect: continue` is for those who come back by the native API."""
    run = _leave_chat(system, "!tokens n=30 rate=50", "stays", on_disconnect="continue")
    assert system.end(run)["output"] == "".join(f"t{i} " for i in range(1, 31))


def _leave_chat(system: System, script: str, session: str, *, stream: bool = True, **fields: str) -> str:
    """Ask for a completion, close the socket once the model has the request; the run."""
    connection = system.http.connection()
    body = {"messages": say(script), "stream": stream, **fields}
    connection.request("POST", "/v1/chat/completions", json.dumps(body), {"X-Session-Id": session})
    until(lambda: system.model.stats()["open"] == 1, "the model has the request")
    if "!slow_headers" not in script:
        view = until(lambda: system.http.get(f"/api/sessions/{session}")["active"], "the run is active")
        if "!stall" in script:
            system.until_text(view["id"], "t3 ")
    run = system.http.get(f"/api/sessions/{session}")["active"]["id"]
    connection.close()
    return run


def test_a_native_run_goes_on_without_any_client(system: System):
    """The log is for whoever comes back."""
    body = {"input": "!tokens n=50 rate=50", "agent": "diver"}
    with system.http.stream("/api/runs", method="POST", body=body) as response:
        run = response.headers["X-Run-Id"]
        for _, event, _ in frames(response):
            if event == "text.delta":
                break
    until(lambda: system.http.get("/health")["readers"] == 0, "the reader is gone")
    record = system.end(run)
    assert (record["state"], record["output"]) == ("completed", "".join(f"t{i} " for i in range(1, 51)))


def test_a_native_run_that_asks_for_it_is_cancelled_with_its_client(system: System):
    """`on_disconnect: cancel`, as on chat completions."""
    body = {"input": "!tokens n=100000 rate=50", "agent": "diver", "on_disconnect": "cancel"}
    with system.http.stream("/api/runs", method="POST", body=body) as response:
        run = response.headers["X-Run-Id"]
        next(frames(response))
    assert system.end(run)["reason"] == "client_disconnect"

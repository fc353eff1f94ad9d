"""What the pages say can be run is run, against a server started the way the README starts it."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
import time
from pathlib import Path

import httpx2
import pytest

from holdfast.client import Client
from tests.cli.live import Server
from tests.docs.blocks import ROOT, blocks
from tests.system.support import free_port

ADDRESS = "http://127.0.0.1:8484"


@pytest.fixture(scope="module")
def demo(tmp_path_factory):
    """The server of `make demo`."""
    server = Server(tmp_path_factory.mktemp("demo"), "demo", "--port", "0")
    yield server
    assert server.close() == 0


def run(command: list[str], code: str, server: Server, **env: str) -> str:
    """Feed a block to an interpreter, with the address of `server` in place of the usual one; what it printed."""
    path = f"{Path(sys.executable).parent}:{os.environ['PATH']}"
    result = subprocess.run(
        command,
        input=code.replace(ADDRESS, server.url),
        capture_output=True,
        text=True,
        timeout=20,
        check=False,
        env={**os.environ, "PATH": path, "HOLDFAST_URL": server.url, **env},
    )
    assert result.returncode == 0, f"{code}\n{result.stdout}\n{result.stderr}"
    return result.stdout


@pytest.mark.slow
@pytest.mark.timeout(40)
def test_shell_lines_of_the_readme(demo):
    """Create, stream, stop and read, with curl and with our own commands, as a visitor would paste them."""
    curl, commands = (block.code for block in blocks("run", "sh"))
    out = run(["bash", "-e"], curl + commands, demo)
    streams = [s for s in out.split("retry:") if "event: run.created" in s]
    assert "event: run.completed" in streams[0]
    assert '"text":"hello' in streams[0]
    assert "event: run.cancelled" in streams[1]
    assert "RUN " in out
    assert "SESSION " in out
    assert re.search(r"^run r_\w+ cancelled: stopped$", out, re.MULTILINE)


@pytest.mark.slow
@pytest.mark.timeout(40)
@pytest.mark.parametrize("block", blocks("run", "python"), ids=lambda block: block.page)
def test_python_blocks(demo, block):
    """The openai library streams from us, and the rehearsal model starts in a loop of one's own."""
    assert run([sys.executable, "-W", "error", "-"], block.code, demo).strip() == "hello"


NODE = """
const real = { fetch: globalThis.fetch, EventSource: globalThis.EventSource };
globalThis.fetch = (url, options) => real.fetch(new URL(url, process.env.HOLDFAST_URL), options);
globalThis.EventSource = class extends real.EventSource {
  constructor(url) { super(new URL(url, process.env.HOLDFAST_URL).href); }
};
const show = (text) => process.stdout.write(text);
"""


@pytest.mark.slow
@pytest.mark.timeout(40)
def test_event_source_block(demo):
    """A browser's own EventSource hears the text, and closes at the end instead of coming back for ever."""
    node = shutil.which("node")
    flags = ["--no-warnings", "--experimental-eventsource", "--input-type=module"]
    if node is None or subprocess.run([node, *flags, "-e", "EventSource"], capture_output=True, check=False).returncode:
        pytest.skip("no node with an EventSource")
    (block,) = blocks("run", "javascript")
    assert run([node, *flags, "-"], NODE + block.code, demo) == "hello[run.completed]"


@pytest.mark.slow
@pytest.mark.timeout(40)
def test_node_block(demo):
    """The JavaScript client, from its own directory: it is on no registry."""
    node = shutil.which("node")
    if node is None:
        pytest.skip("no node")
    (block,) = blocks("run", "node")
    code = block.code.replace('"holdfast-client"', f'"{(ROOT / "clients" / "js" / "src" / "index.js").as_uri()}"')
    assert run([node, "--input-type=module", "-"], code, demo) == "hello"


@pytest.mark.slow
@pytest.mark.timeout(60)
@pytest.mark.parametrize(
    ("spec", "prompt", "heard"),
    [
        ("app:agent", '!tool wait_for_tide {"seconds": 0.01}\n!say done', '"outcome":"success"'),
        ("generator:agent", "one two", '"text":"one two '),
        ("workshop:agent", '!tool count_primes {"below": 100}\n!say done', '"result":25'),
    ],
)
def test_examples_are_served(tmp_path, spec, prompt, heard):
    """What people copy first works as it stands."""
    for example in (ROOT / "examples").glob("*.py"):
        shutil.copy(example, tmp_path)
    (tmp_path / "model").mkdir()
    model = Server(tmp_path / "model", "rehearse", "--port", "0")
    try:
        options = ["--model", "rehearsal", "--model-url", f"{model.url}/v1"]
        server = Server(tmp_path, "serve", spec, "--port", "0", *options)
        try:
            answer = httpx2.post(
                f"{server.url}/api/runs", json={"input": prompt}, headers={"Accept": "text/event-stream"}, timeout=20
            )
        finally:
            assert server.close() == 0
    finally:
        assert model.close() == 0
    assert "event: run.completed" in answer.text, answer.text
    assert heard in answer.text


@pytest.mark.slow
@pytest.mark.timeout(60)
@pytest.mark.parametrize(
    ("package", "spec", "prompt"),
    [
        ("langgraph", "graph:agent", "!say hello from a graph"),
        ("agents", "sdk:agent", '!tool wait_for_tide {"seconds": 0.01}\n!say hello'),
    ],
)
def test_agents_of_other_libraries_are_served(tmp_path, monkeypatch, package, spec, prompt):
    """The examples for them are run wherever they are installed; Holdfast itself needs neither."""
    pytest.importorskip(package)
    (tmp_path / "model").mkdir()
    shutil.copy(ROOT / "examples" / f"{spec.partition(':')[0]}.py", tmp_path)
    model = Server(tmp_path / "model", "rehearse", "--port", "0")
    monkeypatch.setenv("OPENAI_BASE_URL", f"{model.url}/v1")
    monkeypatch.setenv("OPENAI_API_KEY", "any")
    server = Server(tmp_path, "serve", spec, "--port", "0")
    try:
        with Client(server.url) as client:
            types, end = ending(client, prompt)
            assert (end["type"], end["output"]) == ("run.completed", prompt.rpartition("!say ")[2])
            assert [kind for kind in types if kind.startswith("tool.")] == ["tool.called", "tool.finished"]
            _, end = ending(client, "!tokens n=500 rate=20", stop_at="text.delta")
            assert (end["type"], end["reason"]) == ("run.cancelled", "stopped")
            assert end["receipt"]["elapsed_ms"] < 1000
    finally:
        assert server.close() == 0
        stats = httpx2.get(f"{model.url}/_stats").json()
        assert model.close() == 0
    assert (stats["open"], stats["client_disconnects"]) == (0, 1)


@pytest.mark.slow
@pytest.mark.timeout(40)
def test_the_embedded_example_is_served_by_uvicorn(tmp_path):
    """An application that mounts us is what it was before, and has all of us below its path."""
    shutil.copy(ROOT / "examples" / "embedded.py", tmp_path)
    port = free_port()
    command = [sys.executable, "-m", "uvicorn", "embedded:app", "--port", str(port)]
    with (tmp_path / "log").open("w") as log:
        process = subprocess.Popen(command, cwd=tmp_path, stdout=log, stderr=log)
    try:
        with httpx2.Client(base_url=f"http://127.0.0.1:{port}", timeout=10) as http:
            asked = within(20, lambda: http.get("/ask/hello there"))
            assert asked.json()["answer"] == "hello there "
            stream = http.post("/agents/api/runs", json={"input": "a b"}, headers={"Accept": "text/event-stream"})
            assert "event: run.completed" in stream.text
    finally:
        process.terminate()
        process.wait(10)
    assert "Application shutdown complete" in (tmp_path / "log").read_text()


def within(limit_s: float, ask):
    """What `ask` answers, once it does."""
    until = time.monotonic() + limit_s
    while True:
        try:
            return ask()
        except httpx2.TransportError:
            assert time.monotonic() < until, "nobody answers"
            time.sleep(0.1)


@pytest.mark.slow
@pytest.mark.timeout(60)
def test_prompts_of_the_testing_page_end_as_it_says(tmp_path):
    """The table tells people what to expect of their agent; ours behaves so."""
    (tmp_path / "model").mkdir()
    shutil.copy(ROOT / "examples" / "app.py", tmp_path)
    model = Server(tmp_path / "model", "rehearse", "--port", "0")
    options = ["--model", "rehearsal", "--model-url", f"{model.url}/v1"]
    server = Server(tmp_path, "serve", "app:agent", "--port", "0", *options, model_idle_s="1")
    try:
        with Client(server.url) as client:
            types, end = ending(client, "!stall after=5 for=999")
            assert "attempt.discarded" in types
            assert (end["reason"], end["partial"]) == ("model_stalled", "t1 t2 t3 t4 t5 ")
            types, end = ending(client, "!status code=429 retry_after=0.1 times=1")
            assert "model.retried" in types
            assert end["type"] == "run.completed"
            types, end = ending(client, "!close after=10 times=1")
            assert "attempt.discarded" in types
            assert (end["type"], end["output"][:3]) == ("run.completed", "t1 ")
            types, end = ending(client, "!close after=10")
            assert (end["reason"], end["partial"][-4:]) == ("model_error", "t10 ")
            types, end = ending(client, '!tool wait_for_tide {"wrong": "arguments"}\n!say and on')
            assert "tool.finished" in types
            assert end["type"] == "run.completed"
            types, end = ending(client, '!tool wait_for_tide {"seconds": 60}', stop_at="tool.called")
            assert [(tool["name"], tool["ended"]) for tool in end["receipt"]["tools"]] == [
                ("wait_for_tide", "cancelled")
            ]
    finally:
        assert server.close() == 0
        assert model.close() == 0


def ending(client: Client, prompt: str, stop_at: str = "") -> tuple[list[str], dict]:
    """The types of a run's events, and its last event."""
    run = client.start(prompt)["id"]
    events = []
    for event in client.events(run):
        events.append(event)
        if event["type"] == stop_at:
            client.stop(run)
    return [event["type"] for event in events], events[-1]

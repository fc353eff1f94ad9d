"""What the pages say can be run is run, against a server started the way the README starts it."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import httpx2
import pytest

from tests.cli.live import Server
from tests.docs.blocks import ROOT, blocks

ADDRESS = "http://127.0.0.1:8484"


@pytest.fixture(scope="module")
def demo(tmp_path_factory):
    """The server of `make demo`."""
    pytest.importorskip("holdfast.app")
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
@pytest.mark.timeout(60)
@pytest.mark.parametrize(
    ("spec", "prompt", "heard"),
    [
        ("app:agent", '!tool wait_for_tide {"seconds": 0.01}\n!say done', '"outcome":"success"'),
        ("generator:agent", "one two", '"text":"one two '),
    ],
)
def test_examples_are_served(tmp_path, spec, prompt, heard):
    """What people copy first works as it stands."""
    pytest.importorskip("holdfast.app")
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

"""What tests of the command line stand on."""

import socket

import pytest
from click.testing import CliRunner

from holdfast.cli import main
from tests.cli.stub import Stub


@pytest.fixture
def stub(monkeypatch):
    for name in ("HOLDFAST_URL", "HOLDFAST_API_KEY"):
        monkeypatch.delenv(name, raising=False)
    with Stub() as server:
        yield server


@pytest.fixture
def holdfast(stub):
    """Run a client command against the stub."""
    return lambda *args, input=None: CliRunner().invoke(main, [*args, "--url", stub.url], input=input)


@pytest.fixture
def unused_url():
    """An address where nobody listens."""
    with socket.socket() as unused:
        unused.bind(("127.0.0.1", 0))
        yield f"http://127.0.0.1:{unused.getsockname()[1]}"

"""A crowd meets the limit of `connections`, and never that of the system: there nothing is answered any more."""

from __future__ import annotations

import socket
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import psutil
import pytest

from holdfast.app.descriptors import OURS
from tests.system import support
from tests.system.support import HOLDFAST, until

pytestmark = [pytest.mark.slow, pytest.mark.timeout(60)]

FILES = 256


def test_the_probes_answer_where_there_are_fewer_files_than_connections(
    start_system: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """P7, P10: whatever restarts dead servers must not restart one that is only popular."""
    limited = tmp_path / "holdfast"
    limited.write_text(f'#!/bin/sh\nulimit -n {FILES}\nexec {HOLDFAST} "$@"\n')
    limited.chmod(0o755)
    monkeypatch.setattr(support, "HOLDFAST", limited)
    system = start_system()
    gateway = psutil.Process(system.server.pid)
    with ExitStack() as crowd:
        for _ in range(2 * FILES):
            crowd.enter_context(socket.create_connection(("127.0.0.1", system.http.port), 5))
        until(lambda: gateway.num_fds() > FILES // 2, "they are there", 10)
        assert gateway.num_fds() < FILES
    until(lambda: gateway.num_fds() < FILES // 2, "they are gone", 10)
    with ExitStack() as crowd:
        for _ in range(FILES - OURS + 8):
            crowd.enter_context(socket.create_connection(("127.0.0.1", system.http.port), 5))
        until(lambda: system.http.ask("GET", "/api/runs")[0] == 503, "there are too many", 5)
        assert system.http.ask("GET", "/livez")[0] == 200
    until(lambda: system.http.ask("GET", "/readyz")[0] == 200, "it is ready again", 10)
    assert f"may have {FILES} files open" in system.server.log()
    system.prompt_works("s")

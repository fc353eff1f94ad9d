"""/readyz of a real server whose worker is frozen: it says so, with the reason, and is well again by itself."""

from __future__ import annotations

import signal

import pytest

from tests.supervision.conftest import Serve
from tests.supervision.support import kill, settled, worker_pid
from tests.system.support import until

pytestmark = [pytest.mark.slow, pytest.mark.timeout(90)]


def test_a_paused_worker_makes_the_server_unready_with_the_reason(serve: Serve) -> None:
    """Before anybody would kill it, and though the store, the gateway and the model answer."""
    system = serve(
        HOLDFAST_LEASE_S="3", HOLDFAST_RENEW_S="0.5", HOLDFAST_LOOP_STALL_S="60", HOLDFAST_SYNTHETIC_RUN_S="30"
    )
    settled(system)
    until(lambda: system.http.ask("GET", "/readyz")[0] == 200, "it is ready")
    worker = worker_pid(system)
    kill(worker, signal.SIGSTOP)
    try:
        status, body = until(
            lambda: next((found for found in [system.http.ask("GET", "/readyz")] if found[0] == 503), None), "503", 15
        )
        assert status == 503
        why = body["parts"]["worker"]["why"]
        assert "last reported" in why, body
        assert why in body["detail"]
        assert system.http.ask("GET", "/livez")[0] == 200
    finally:
        kill(worker, signal.SIGCONT)
    until(lambda: system.http.ask("GET", "/readyz")[0] == 200, "it is ready again", 30)

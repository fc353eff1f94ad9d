"""`examples/document4.sh`: the document's own commands against a live server."""

import os
import subprocess
from pathlib import Path

import pytest

from tests.scenarios.conftest import Serve
from tests.scenarios.support import CLEANLY, check_strict, lines, told
from tests.system.support import ROOT

pytestmark = [pytest.mark.slow, pytest.mark.timeout(60)]


def test_the_documents_own_commands_work_as_they_stand(serve: Serve, tmp_path: Path):
    """Form content type, `Bearer devkey`, no header at all, `prompt`, `--max-time 3`; and the log says so."""
    system = serve()
    env = {**os.environ, "OUT": str(tmp_path), "POEM": "!tokens n=100000 rate=50", "ESSAY": "!first_token delay=20"}
    script = [str(ROOT / "examples" / "document4.sh"), str(system.http.port)]
    done = subprocess.run(script, env=env | {"WITHIN": "3"}, capture_output=True, text=True, timeout=50)
    assert done.returncode == 0, done.stdout + done.stderr
    assert done.stdout.count("ok  ") == 12, done.stdout
    found = lines(system)
    runs = list(dict.fromkeys(line["run"] for line in found if line["event"] == "stream_requested"))
    assert len(runs) == 12
    normal, left, first, second = runs[:4]
    found = told(system, *runs)
    assert [line["event"] for line in found if line["run"] == normal][-2:] == ["stream_end", "cleanup_done"]
    (cancelled,) = (line for line in found if (line["event"], line["run"]) == ("stream_cancelled", left))
    assert cancelled["reason"] == "client_disconnect"
    assert left in {line["run"] for line in found if line["event"] == "stream_end"}
    check_strict(found, first, second, CLEANLY)
    session = next(line["session"] for line in found if line["run"] == first)
    assert session.startswith("test-session-")
    assert not any("session-2" in line.get("session", "") and line["event"] == "stream_cancelled" for line in found)

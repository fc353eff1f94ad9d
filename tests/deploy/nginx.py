"""Debian's nginx with deploy/nginx.conf, in front of servers of the tests."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
from pathlib import Path

import pytest

from tests.system.support import Http, free_port, until

CONF = Path(__file__).resolve().parents[2] / "deploy" / "nginx.conf"
MISSING = "no nginx: deploy/nginx.conf is NOT tested; scripts/system-packages nginx installs it"


def program() -> str:
    found = shutil.which("nginx", path=os.environ.get("PATH", "") + ":/usr/sbin")
    if found is None:
        if os.geteuid() == 0:
            pytest.fail(MISSING)
        pytest.skip(MISSING)
    return found


class Nginx:
    """nginx with our configuration: other addresses, and nothing else of it changed unless a test says so."""

    def __init__(self, directory: Path, gateways: list[int], *, leave_out: str = "") -> None:
        self.http = Http(free_port())
        text = CONF.read_text().replace("listen 8080;", f"listen 127.0.0.1:{self.http.port};")
        text = text.replace("pid /tmp/nginx.pid;", f"pid {directory}/nginx.pid;")
        ports = iter(gateways)
        text = re.sub(r"server gateway-\d:8484", lambda _: f"server 127.0.0.1:{next(ports)}", text)
        for name in ("client_body", "proxy", "fastcgi", "uwsgi", "scgi"):  # where Debian's nginx would write as root
            text = text.replace("http {", f"http {{\n  {name}_temp_path {directory}/{name};", 1)
        for directive in filter(None, leave_out.split(",")):
            text, count = re.subn(rf"^ *{directive} [^;]*;.*$", "", text, flags=re.MULTILINE)
            assert count == 1, directive
        path = directory / f"nginx-{self.http.port}.conf"
        path.write_text(text)
        command = [program(), "-e", "stderr", "-p", str(directory), "-c", str(path), "-g", "daemon off;"]
        self.process = subprocess.Popen(command, stdin=subprocess.DEVNULL, cwd=directory)
        until(self._answers, "nginx answers", 10)

    def _answers(self) -> bool:
        assert self.process.poll() is None, "nginx has ended"
        try:
            return self.http.ask("GET", "/livez", limit_s=5)[0] == 200
        except OSError:
            return False

    def close(self) -> None:
        self.process.terminate()
        self.process.wait(10)

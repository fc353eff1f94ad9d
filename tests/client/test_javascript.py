"""The JavaScript client by its own tests, under Node; in real conditions it is one of the readers of tests/system."""

from __future__ import annotations

import json
import shutil
import subprocess
from pathlib import Path

import pytest

from tests.streams.node import node_program

PACKAGE = Path(__file__).parents[2] / "clients" / "js"
NODE = shutil.which("node")
NO_NODE = "no node: the JavaScript client is not tested here; install Node 20 or newer"
MODULES = PACKAGE.parents[1] / "tests" / "npm_streams" / "node_modules"


@pytest.mark.slow
@pytest.mark.timeout(90)
@pytest.mark.skipif(NODE is None, reason=NO_NODE)
@pytest.mark.parametrize("path", sorted(PACKAGE.glob("test/*.test.js")), ids=lambda path: path.stem)
def test_javascript(path: Path):
    """Each test there has a promise for its name; Node's own report says which one is not kept."""
    result = subprocess.run(
        [str(NODE), "--test", str(path)], capture_output=True, text=True, timeout=80, cwd=PACKAGE, check=False
    )
    assert result.returncode == 0, result.stdout[-8000:] + result.stderr[-2000:]
    assert "# fail 0" in result.stdout


def test_there_are_javascript_tests():
    """A pattern that finds nothing must not pass for a test."""
    assert len(list(PACKAGE.glob("test/*.test.js"))) >= 1


@pytest.mark.slow
@pytest.mark.timeout(300)
@pytest.mark.parametrize("name", ["types.mts", "chat_types.mts"])
def test_declarations_say_what_the_client_does(name: str, tmp_path: Path):
    """Who writes TypeScript is told of a wrong call before it is made, and of no right one."""
    node_program()  # installs typescript and ai
    options = {"noEmit": True, "strict": True, "skipLibCheck": True, "target": "es2022", "module": "nodenext"}
    options |= {
        "lib": ["es2022", "dom", "dom.iterable"],
        "types": [],
        "paths": {"ai": [str(MODULES / "ai" / "dist" / "index.d.ts")]},
    }
    config = {"compilerOptions": options, "files": [str(PACKAGE / "test" / name)]}
    (tmp_path / "tsconfig.json").write_text(json.dumps(config))
    result = subprocess.run(
        [str(MODULES / ".bin" / "tsc"), "-p", tmp_path], capture_output=True, text=True, timeout=80, check=False
    )
    assert result.returncode == 0, result.stdout

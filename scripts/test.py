"""`make test`: the whole suite in some processes, and once more alone what failed there.

Two processes of tests share two cores with all the servers that they start. That is quick, and unfair to a test that
holds a server to 300 ms: its failure there may be its neighbour's doing. So a few failures are judged by a second run
with the machine to themselves, and it is their last: what fails again, fails. The first run's report stays above, since
a test that is here each time wants mending. More than a few are nobody's bad luck.
"""

import argparse
import json
import subprocess
import sys
from pathlib import Path
from typing import Final

ROOT: Final = Path(__file__).resolve().parents[1]
FAILED: Final = ROOT / ".pytest_cache" / "v" / "cache" / "lastfailed"
AGAIN_MAX: Final = 4
TESTS_FAILED: Final = 1  # pytest's exit code for that; others say that the run itself went wrong


def main() -> int:
    """The exit code: pytest's own, of the second run where there was one."""
    parser = argparse.ArgumentParser(prog="scripts/test.py", description=__doc__.splitlines()[0])
    parser.add_argument("--jobs", default="2", help="processes of tests (2)")
    parser.add_argument("paths", nargs="*", help="only these tests")
    asked = parser.parse_args()
    spread = ["--numprocesses", asked.jobs, "--dist", "loadfile", "--no-loadscope-reorder"]
    code = _pytest("--cache-clear", *spread, *asked.paths)
    failed = sorted(json.loads(FAILED.read_text())) if code == TESTS_FAILED and FAILED.exists() else []
    if not 0 < len(failed) <= AGAIN_MAX:
        return code
    names = "\n  ".join(failed)
    sys.stdout.write(f"\n{len(failed)} failed beside other tests, and are run once more, alone:\n  {names}\n")
    sys.stdout.flush()
    return _pytest(*failed)


def _pytest(*arguments: str) -> int:
    return subprocess.run([sys.executable, "-m", "pytest", *arguments], cwd=ROOT, check=False).returncode


if __name__ == "__main__":
    sys.exit(main())

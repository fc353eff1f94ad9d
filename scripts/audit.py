"""Asks for known vulnerabilities of everything that constraints.txt pins, by pip-audit in a place of its own.

Exit codes: 0 none is known, 1 some are, 2 they could not be asked for. An index that mirrors packages often knows no
vulnerabilities; then "none found" would be a lie, and is not said.
"""

from __future__ import annotations

import json
import subprocess
import sys
import venv
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[1]
PLACE = ROOT / ".venv" / "audit"
TOOL = "pip-audit==2.10.1"
LIMIT_S = 300.0
HINT = "audit: the vulnerability service was not reached from here; run `make audit` where PyPI itself answers"


def say(text: str) -> None:
    """A line on standard output."""
    sys.stdout.write(f"{text}\n")


def tool() -> Path:
    """pip-audit, installed once: its fifteen dependencies are not among ours."""
    program = PLACE / "bin" / "pip-audit"
    if not program.exists():
        venv.create(PLACE, with_pip=True)
        command = [str(PLACE / "bin" / "pip"), "install", "-qq", "--disable-pip-version-check", TOOL]
        subprocess.run(command, check=True, timeout=LIMIT_S)
    return program


def ask() -> list[dict[str, Any]]:
    """What it says of each package."""
    where = [
        "-r",
        str(ROOT / "constraints.txt"),
        "--no-deps",
        "--disable-pip",
        "--format",
        "json",
        "--progress-spinner",
        "off",
    ]
    done = subprocess.run([str(tool()), *where], capture_output=True, text=True, timeout=LIMIT_S, check=False)
    try:
        found: list[dict[str, Any]] = json.loads(done.stdout)["dependencies"]
    except (ValueError, KeyError) as error:
        raise RuntimeError(done.stderr.strip()[-500:] or repr(error)) from error
    return found


def main() -> int:
    """Print what is known; the exit code says the rest."""
    try:
        found = ask()
    except (RuntimeError, OSError, subprocess.SubprocessError) as error:
        say(f"audit: pip-audit failed: {error}\n{HINT}")
        return 2
    skipped = [each for each in found if "skip_reason" in each]
    for each in found:
        for known in each.get("vulns", ()):
            fixed = ", ".join(known["fix_versions"]) or "nothing yet"
            say(f"{each['name']} {each['version']}: {known['id']}, fixed in {fixed}")
    if skipped:
        say(
            f"audit: {len(skipped)} of {len(found)} packages are not known to the service that answered, first: "
            f"{skipped[0]['name']}\n{HINT}"
        )
    if any(each.get("vulns") for each in found):
        return 1
    if skipped:
        return 2
    say(f"audit: no vulnerability is known of {len(found)} packages")
    return 0


if __name__ == "__main__":
    sys.exit(main())

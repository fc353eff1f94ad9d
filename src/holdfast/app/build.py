"""Which code and which settings a run was made with: on every run record, in /version and in /metrics.

The build is the version and a digest of the package's own files, so that a patched or half-upgraded machine shows; the
fingerprint is of all settings but secrets. Two servers that show the same pair behave the same, as far as that is ours.
"""

from __future__ import annotations

import hashlib
from functools import cache
from pathlib import Path
from typing import Final

from holdfast import __version__
from holdfast.config import Settings
from holdfast.config.settings import SECRETS

_PACKAGE: Final = Path(__file__).resolve().parents[1]
_ENDINGS: Final = frozenset({".py", ".sql", ".lua"})
_DIGITS: Final = 12
_PLACES: Final = ("host", "port", "health_host", "health_port")


@cache
def build_id() -> str:
    """`<version>+<digest>`; takes some 20 ms the first time."""
    digest = hashlib.sha256()
    for path in sorted(_PACKAGE.rglob("*")):
        if path.suffix in _ENDINGS:
            digest.update(f"{path.relative_to(_PACKAGE).as_posix()}\0".encode())
            digest.update(hashlib.sha256(path.read_bytes()).digest())
    return f"{__version__}+{digest.hexdigest()[:_DIGITS]}"


def fingerprint(settings: Settings) -> str:
    """A digest of the settings, secrets and ports left out: servers of one deployment may differ in these."""
    text = settings.model_dump_json(exclude={*SECRETS, *_PLACES})
    return hashlib.sha256(text.encode()).hexdigest()[:_DIGITS]


def version(settings: Settings) -> dict[str, str]:
    """What /version answers."""
    return {"version": __version__, "build": build_id(), "config": fingerprint(settings)}

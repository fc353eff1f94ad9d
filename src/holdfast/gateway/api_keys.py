"""API keys: who may enter with a secret that the operator gave out.

Keys come from the setting `api_keys` and from `api_keys_file`, which is read again when it changes. In memory there are
only SHA-256 digests: keys are long and random, so that a slow hash would protect nothing and cost every request.
"""

from __future__ import annotations

import hashlib
import re
import secrets
import time
from collections.abc import Iterable
from pathlib import Path
from typing import Final, NamedTuple

from holdfast.telemetry import Log

READ: Final = "read"
RUN: Final = "run"
SCOPES: Final = frozenset({READ, RUN})

_LOOK_S: Final = 1.0  # how often the file's time is looked at, at most
_FILE_BYTES_MAX: Final = 4_194_304
_NAME: Final = re.compile(r"[A-Za-z0-9._-]{1,64}")  # no colon: what has one is a subject of a token
_DIGEST: Final = re.compile(r"sha256:([0-9a-f]{64})")


class BadKeys(Exception):
    """A list of keys cannot be read; the text names the place and the remedy, never a key."""


class ApiKey(NamedTuple):
    """One key, without its secret.

    Attributes:
        name: What the operator calls it.
        tenant: Whose runs it sees and makes; its name, unless it says otherwise.
        scopes: `read`, `run`, or both.
        digest: SHA-256 of the secret.
    """

    name: str
    tenant: str
    scopes: frozenset[str]
    digest: bytes


class ApiKeys:
    """The keys that are valid now."""

    def __init__(self, listed: str, file: str, log: Log) -> None:
        """Read both sources.

        Args:
            listed: `name:key,...`; a key may be given as `sha256:<64 hex digits>`.
            file: The path of a file with one such entry a line, or "".
            log: Told when the file was read again, and when that failed.

        Raises:
            BadKeys: An entry is malformed, two have one name or one secret, or the file cannot be read.
        """
        self._log = log
        self._file = Path(file) if file else None
        entries = enumerate((text.strip() for text in listed.split(",")), 1)
        self._listed = [_entry(f"api_keys, entry {n}", text) for n, text in entries if text]
        self._looked = time.monotonic()
        self._seen = self._stamp()
        self._keys = self._merged(self._read())
        self.why = ""  # why the file's present content is not in force

    def __len__(self) -> int:
        """How many there are."""
        return len(self._keys)

    def find(self, secret: str) -> ApiKey | None:
        """The key with this secret. Where digests are compared, timing tells nothing about a secret."""
        self._refresh()
        return self._keys.get(digest_of(secret))

    def holds(self, key: ApiKey) -> bool:
        """Whether a key that was found before is still as it was."""
        self._refresh()
        return self._keys.get(key.digest) == key

    def _refresh(self) -> None:
        """Read the file again if it has changed; what cannot be read leaves the keys as they are, and is said."""
        now = time.monotonic()
        if self._file is None or now - self._looked < _LOOK_S:
            return
        self._looked = now
        stamp = self._stamp()
        if stamp == self._seen and stamp is not None:
            return
        try:
            keys = self._merged(self._read())
        except BadKeys as error:
            if str(error) != self.why:
                self.why = str(error)
                self._log.write("api_keys_not_read", error=self.why, in_force=len(self._keys))
            self._seen = None
        else:
            self._keys, self._seen, self.why = keys, stamp, ""
            self._log.write("api_keys_read", keys=len(keys))

    def _stamp(self) -> tuple[int, int, int] | None:
        if self._file is None:
            return None
        try:
            found = self._file.stat()
        except OSError:
            return None
        return found.st_mtime_ns, found.st_size, found.st_ino

    def _read(self) -> list[ApiKey]:
        if self._file is None:
            return []
        try:
            with self._file.open("rb") as file:
                data = file.read(_FILE_BYTES_MAX + 1)
            text = data.decode("utf-8")
        except (OSError, UnicodeDecodeError) as error:
            raise BadKeys(f"api_keys_file {self._file} cannot be read: {error}; correct its path or content") from error
        if len(data) > _FILE_BYTES_MAX:
            raise BadKeys(f"api_keys_file {self._file} is larger than {_FILE_BYTES_MAX} bytes; is it the right file?")
        lines = enumerate((line.strip() for line in text.splitlines()), 1)
        return [_entry(f"api_keys_file, line {n}", line) for n, line in lines if line and not line.startswith("#")]

    def _merged(self, read: list[ApiKey]) -> dict[bytes, ApiKey]:
        keys: dict[bytes, ApiKey] = {}
        names: set[str] = set()
        for key in (*self._listed, *read):
            if key.name in names:
                raise BadKeys(f"two API keys are named {key.name!r}; give each a name of its own, and both one tenant=")
            if key.digest in keys:
                raise BadKeys(f"API keys {keys[key.digest].name!r} and {key.name!r} are the same; make another")
            names.add(key.name)
            keys[key.digest] = key
        return keys


def digest_of(secret: str) -> bytes:
    """What is kept of a secret."""
    return hashlib.sha256(secret.encode("utf-8", "surrogateescape")).digest()


def new_key() -> str:
    """A fresh secret with 256 random bits."""
    return f"hf_{secrets.token_urlsafe(32)}"


def line_of(name: str, secret: str, tenant: str = "", scopes: Iterable[str] = SCOPES) -> str:
    """The line of `api_keys_file` that lets a secret in.

    Raises:
        BadKeys: The name, the tenant or a scope is malformed.
    """
    line = f"{name}:sha256:{digest_of(secret).hex()}"
    if tenant:
        line += f" tenant={tenant}"
    if set(scopes) != SCOPES:
        line += f" scopes={'+'.join(sorted(scopes))}"
    if not _NAME.fullmatch(name):
        raise BadKeys(f"the name {name!r} is not 1 to 64 of [A-Za-z0-9._-]; choose another")
    _entry("the new key", line)
    return line


def _entry(place: str, text: str) -> ApiKey:
    """`name:key`, and behind blanks `tenant=` and `scopes=`."""
    first, *options = text.split()
    name, colon, secret = first.partition(":")
    if not colon or not secret:
        raise BadKeys(f"{place} is not name:key; write a name, a colon and the key")
    if not _NAME.fullmatch(name):
        raise BadKeys(f"{place}: the name is not 1 to 64 of [A-Za-z0-9._-]; correct what stands before the colon")
    hashed = _DIGEST.fullmatch(secret)
    if hashed is None and secret.startswith("sha256:"):
        raise BadKeys(
            f"{place} ({name}): sha256: is not followed by 64 hex digits; `holdfast key {name}` prints a line"
        )
    given = dict(option.partition("=")[::2] for option in options)
    if unknown := set(given) - {"tenant", "scopes"}:
        raise BadKeys(f"{place} ({name}): {min(unknown)[:64]!r} is neither tenant= nor scopes=")
    tenant = given.get("tenant", name)
    if not _NAME.fullmatch(tenant):
        raise BadKeys(f"{place} ({name}): the tenant is not 1 to 64 of [A-Za-z0-9._-]")
    scopes = frozenset(given["scopes"].split("+")) if "scopes" in given else SCOPES
    if not scopes <= SCOPES:
        raise BadKeys(f"{place} ({name}): scopes are read, run, or read+run")
    return ApiKey(name, tenant, scopes, bytes.fromhex(hashed[1]) if hashed else digest_of(secret))

"""Secrets are masked before anything is shown: the known ones, and what is unmistakably one.

Known are the values of the environment whose names say that they are secret, in the forms in which they can appear
in a line of a log. Unmistakable are bearer tokens, JWTs, keys that begin as those of well-known services do (`sk-`,
`ghp_`, `AKIA`), `api_key=...` or `db_password=...` and passwords in URLs. Each pattern is compiled once, takes time
linear in the text, and is tried only where a word of it is there.

What a model writes is never masked: its deltas must be its text, byte for byte, and a secret that is cut in two by
two deltas could not be found.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterable, Mapping
from typing import Any, Final
from urllib.parse import quote

import msgspec

MASKED: Final = "[masked]"
_LENGTH_MIN: Final = 8
_NAME: Final = re.compile(
    r"(?:API_KEYS?|MODEL_KEY|(?:ACCESS|SECRET|PRIVATE)_KEY|TOKEN|SECRET|PASSWORD)$", re.IGNORECASE
)
_LIST: Final = re.compile(r"API_KEYS$", re.IGNORECASE)  # name:key,name:key
_DEPTH_MAX: Final = 32
# What must be in a text, in lower case, for a pattern to be tried at all; its group is what is masked.
_UNMISTAKABLE: Final = tuple(
    (words, re.compile(pattern))
    for words, pattern in (
        (("bearer",), r"(?i:\bbearer\s{1,4})([\w.~+/=-]{8,})"),
        (("basic",), r"(?i:\bbasic\s{1,4})([A-Za-z0-9+/=]{16,})"),
        (("sk-",), r"(?<![\w-])(sk-[\w-]{16,})"),
        (
            ("key", "token", "secret", "passw"),  # DB_PASSWORD=, aws_secret_access_key: whatever stands before it
            r"(?i:(?:api[_-]?key|access[_-]?key|(?:access|auth|refresh)[_-]?token|secret(?:[_-]?key)?|passw(?:or)?d)"
            r"[\"']?\s{0,4}[=:]\s{0,4}[\"']?)([^\s\"'&,;\[\]]{8,})",
        ),
        (("gh",), r"(?<![A-Za-z0-9])(gh[opsur]_[A-Za-z0-9]{20,}|github_pat_\w{20,})"),
        (("xox", "akia", "aiza"), r"(?<![A-Za-z0-9])(xox[abeprs]-[\w-]{10,}|AKIA[0-9A-Z]{16}|AIza[\w-]{30,})"),
        (("eyj",), r"(?<![\w-])(eyJ[\w-]{8,}+\.eyJ[\w-]{8,}+\.[\w-]*)"),  # a token of JWT
        (("://",), r"://[^/\s:@]{0,128}:([^/\s:@]{1,256})@"),
    )
)


class Secrets:
    """What is to be masked."""

    def __init__(self, values: Iterable[str] = ()) -> None:
        """Compile `values`, each at least eight characters long; shorter ones would mask ordinary words."""
        forms = {form for value in values if len(value) >= _LENGTH_MIN for form in _forms(value)}
        self._forms = sorted(forms, key=len, reverse=True)
        self._known = re.compile("|".join(map(re.escape, self._forms))) if forms else None

    def mask(self, text: str) -> str:
        """`text` with every secret replaced, the known ones and the unmistakable."""
        text = self.mask_known(text)
        lowered = text.lower()
        for words, pattern in _UNMISTAKABLE:
            if any(word in lowered for word in words):
                text = pattern.sub(_cover, text)
        return text

    def mask_known(self, text: str) -> str:
        """`text` with the known secrets replaced."""
        if self._known is None or not any(form in text for form in self._forms):
            return text
        return self._known.sub(MASKED, text)

    def mask_value(self, value: Any) -> Any:
        """A JSON value with the known secrets replaced in its texts; the very same value where there is none."""
        if self._known is None or value is None or isinstance(value, (bool, int, float)):
            return value
        if isinstance(value, str):
            return self.mask_known(value)
        try:
            plain = msgspec.to_builtins(value, enc_hook=str)
            if self._known.search(json.dumps(plain)) is None:
                return value
        except Exception:  # noqa: BLE001 - whatever a tool's own __str__ raises; what stores it says that it is no JSON
            return value
        return self._walk(plain, 0)

    def _walk(self, value: Any, depth: int) -> Any:
        if isinstance(value, str):
            return self.mask_known(value)
        if depth > _DEPTH_MAX:
            return MASKED
        if isinstance(value, dict):
            return {self._walk(key, depth + 1): self._walk(item, depth + 1) for key, item in value.items()}
        if isinstance(value, (list, tuple)):
            return [self._walk(item, depth + 1) for item in value]
        return value


def of_environment(environ: Mapping[str, str]) -> list[str]:
    """The values that are secret by their names."""
    found: list[str] = []
    for name, value in environ.items():
        if _LIST.search(name):
            found += [part.rpartition(":")[2].strip() for part in value.split(",")]
        elif _NAME.search(name):
            found.append(value.strip())
    return found


_secrets = Secrets()


def learn(environ: Mapping[str, str]) -> None:
    """From now on mask what this environment holds; again after user code may have changed it."""
    global _secrets
    _secrets = Secrets(of_environment(environ))


def mask(text: str) -> str:
    """`text` without this process's secrets, nor what is unmistakably one."""
    return _secrets.mask(text)


def mask_value(value: Any) -> Any:
    """A JSON value without this process's known secrets."""
    return _secrets.mask_value(value)


def _forms(value: str) -> set[str]:
    """As it is, inside JSON, inside a Python repr, and inside a URL."""
    return {
        value,
        json.dumps(value)[1:-1],
        json.dumps(value, ensure_ascii=False)[1:-1],
        repr(value)[1:-1],
        quote(value, safe=""),
    }


def _cover(match: re.Match[str]) -> str:
    """Only the secret part of what was found."""
    start, whole = match.start(), match.group()
    return whole[: match.start(1) - start] + MASKED + whole[match.end(1) - start :]

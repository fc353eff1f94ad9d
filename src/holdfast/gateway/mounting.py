"""Below which path of another app the gateway stands: taken off before anybody looks, put back where we name a path.

Everything in here is told apart by its path: routes, the socket, whose shape an error has, what is open to strangers.
`Mount` and `FastAPI.mount` leave the whole path in the scope and say in `root_path` how much of it is theirs.
"""

from __future__ import annotations

from starlette.requests import HTTPConnection
from starlette.types import Scope

_ROOT = "holdfast.root"


def unmounted(scope: Scope) -> Scope:
    """The scope as it would be at the root of a server."""
    root = scope.get("root_path", "").rstrip("/")
    path = scope.get("path", "")
    if not root or not (path == root or path.startswith(f"{root}/")):
        return scope
    return {**scope, "path": path.removeprefix(root) or "/", "root_path": "", _ROOT: root}


def outside(connection: HTTPConnection, path: str) -> str:
    """A path of ours as the client of `connection` has to write it."""
    return f"{connection.scope.get(_ROOT, '')}{path}"

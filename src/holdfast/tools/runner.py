"""Runs one function in a process of its own: `python -P runner.py REQUEST_FD RESULT_FD`, started by the shim.

Imports nothing of Holdfast before the function's own module does. The function is found by its module and name, as the
worker found it; what it returns, or raises, goes back as one JSON object, and then the process ends: no thread that it
left keeps it.
"""

from __future__ import annotations

import importlib
import json
import os
import sys
from contextlib import suppress
from typing import Any

MAIN = "__main__"
MAIN_HERE = "__holdfast_main__"  # so that `if __name__ == "__main__"` does not hold
TRACE_CHARACTERS = 4000


def find(module: str, file: str, name: str) -> Any:
    """The function behind the decorator."""
    if module == MAIN:
        found: Any = _main_module(file)
    else:
        found = importlib.import_module(module)
    for part in name.split("."):
        found = getattr(found, part)
    try:
        return found.__holdfast_isolated__
    except AttributeError:
        kind = type(found).__name__
        raise TypeError(
            f"{module}.{name} is a {kind} in the tool's process, not the function behind @isolated"
        ) from None


def perform(request: dict[str, Any]) -> Any:
    """What the function returns."""
    function = find(request["module"], request["file"], request["name"])
    if request["call"]:
        from holdfast.tools.calls import CurrentCall, enter_call  # part of what the function's module has imported

        enter_call(CurrentCall(*request["call"]))
    reports = sys.modules.get("holdfast.tools.reports")
    if reports is not None:  # the function's module has imported `progress`
        reports.print_progress()
    value = function(*request["args"], **request["kwargs"])
    if request["awaits"]:
        import asyncio

        value = asyncio.run(value)
    return value


def answer(request: dict[str, Any]) -> dict[str, Any]:
    """`{"value"}` or `{"error"}`; whatever the function does, it is one of them."""
    try:
        value = perform(request)
    except SystemExit as error:
        return _failed(RuntimeError(f"the tool called exit({error.code})"))
    except BaseException as error:  # noqa: BLE001 - the process's outer edge: the worker gets it
        return _failed(error)
    return {"value": value}


def encode(reply: dict[str, Any], bytes_max: int) -> bytes:
    """As JSON, no larger than the worker reads."""
    try:
        data = json.dumps(reply, allow_nan=False, separators=(",", ":")).encode()
    except (TypeError, ValueError, RecursionError) as error:
        kind = type(reply.get("value")).__name__
        return encode(_failed(TypeError(f"the tool's result is a {kind} and no JSON: {error}")), bytes_max)
    if len(data) > bytes_max:
        text = f"the tool's result is {len(data)} bytes of JSON; at most {bytes_max} come back from an isolated tool"
        return encode(_failed(ValueError(text)), bytes_max)
    return data


def _failed(error: BaseException) -> dict[str, Any]:
    import traceback

    kind = type(error)
    trace = "".join(traceback.format_exception(error, limit=-8))[-TRACE_CHARACTERS:]
    return {
        "error": {
            "type": kind.__name__,
            "module": kind.__module__,
            "message": str(error)[:TRACE_CHARACTERS],
            "trace": trace,
        }
    }


def _main_module(file: str) -> Any:
    """The worker's script, imported under another name."""
    import importlib.util

    spec = importlib.util.spec_from_file_location(MAIN_HERE, file)
    if spec is None or spec.loader is None:
        raise ImportError(f"the tool's module is a script that cannot be imported from {file!r}")
    module = importlib.util.module_from_spec(spec)
    sys.modules[MAIN_HERE] = module
    spec.loader.exec_module(module)
    return module


def main() -> None:
    """Read the request, run, answer, end."""
    request_fd, result_fd = int(sys.argv[1]), int(sys.argv[2])
    for fd in (request_fd, result_fd):
        os.set_inheritable(fd, False)
    with open(request_fd, "rb") as file:
        request = json.loads(file.read())
    sys.argv = [request["file"] or request["module"]]
    sys.path[:] = request["path"]
    data = encode(answer(request), request["bytes_max"])
    for stream in (sys.stdout, sys.stderr):
        with suppress(OSError, ValueError):
            stream.flush()
    while data:
        data = data[os.write(result_fd, data) :]
    os._exit(0)


if __name__ == "__main__":
    main()

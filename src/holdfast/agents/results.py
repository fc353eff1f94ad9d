"""What a tool gave, as it may be sent on: JSON, and no more of it than the limit.

The same bound holds for the model, the log and the checkpoint: a result that fills the context window ends the run one
step later, and one that fills the store ends others. What is too large is a marked beginning of itself:

    {"truncated": true, "bytes": 10000000, "head": "the first part as text"}
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import replace
from typing import Any, Final

import pydantic_core
from pydantic_ai.messages import ToolCallPart, ToolReturn, ToolReturnPart, is_multi_modal_content

from holdfast.domain.events import encodable

FILE_BYTES_MAX: Final = 8 * 1024 * 1024  # a result with images or other files: half of one is worth nothing
FILES_MAX: Final = 100
MESSAGE_MAX: Final = 4000


def sendable(result: Any, bytes_max: int) -> Any:
    """`result` as it may be sent on.

    Raises:
        TypeError: It is no JSON, or a `ToolReturn` that the library would refuse: the tool's failure, not the run's.
    """
    if not isinstance(result, ToolReturn):
        if isinstance(result, list) and any(issubclass(kind, ToolReturn) for kind in set(map(type, result))):
            raise TypeError("the tool's result is a list with a ToolReturn inside; return the ToolReturn itself")
        return _bounded(result, bytes_max)
    named: Any = result.tools  # the library checks it only when it is too late
    if named is not None and (isinstance(named, str) or not all(isinstance(name, str) for name in named)):
        raise TypeError("ToolReturn.tools must be a list of tool names")
    return replace(
        result,
        return_value=_bounded(result.return_value, bytes_max),
        content=_beside(result.content, bytes_max),
        metadata=_bounded(result.metadata, bytes_max),
    )


def cut(text: str, characters: int = MESSAGE_MAX) -> str:
    """`text`, or its beginning with a word on how much there was."""
    if len(text) <= characters:
        return encodable(text)
    return f"{encodable(text[:characters])} [truncated: {len(text)} characters]"


def words(error: BaseException) -> str:
    """Type and message of an exception, whatever its own `__str__` does."""
    try:
        text = str(error)
    except Exception as second:  # noqa: BLE001 - a message that cannot be had must not cost the run
        text = f"its message cannot be had: {type(second).__name__}"
    return cut(f"{type(error).__name__}: {text}" if text else type(error).__name__)


def cut_part(part: ToolReturnPart) -> ToolReturnPart:
    """A failed result that the library made of an exception's message, which may be of any length."""
    if isinstance(part.content, str):
        part.content = cut(part.content)
    return part


def _bounded(value: Any, bytes_max: int) -> Any:
    if value is None or isinstance(value, bool | int | float):
        return value
    if isinstance(value, str) and len(value) * 4 <= bytes_max:
        return encodable(value)
    encoded = value.encode(errors="replace") if isinstance(value, str) else _encoded(value)
    if len(encoded) <= bytes_max or (len(encoded) <= FILE_BYTES_MAX and _has_files(value)):
        return value
    head = encoded[: bytes_max // 2].decode(errors="ignore")
    return {"truncated": True, "bytes": len(encoded), "head": head}


def _beside(content: Any, bytes_max: int) -> Any:
    """What the model reads beside the result, as a prompt: text, or a list of text and files."""
    bounded = _bounded(content, bytes_max)
    if bounded is content or content is None:
        return content
    return f"{bounded['head']} [truncated: {bounded['bytes']} bytes]"


def _has_files(value: Any) -> bool:
    if isinstance(value, Sequence) and not isinstance(value, str | bytes):
        return len(value) <= FILES_MAX and any(is_multi_modal_content(item) for item in value)
    return is_multi_modal_content(value)


def _encoded(value: Any) -> bytes:
    try:
        return pydantic_core.to_json(value, bytes_mode="base64")
    except Exception as error:  # the tool's own code runs here, too
        raise TypeError(f"the tool's result is a {type(value).__name__} and no JSON: {words(error)}") from error


def args_of(part: ToolCallPart) -> Any:
    """A call's arguments as JSON; as text where the model sent none."""
    if not isinstance(part.args, str):
        return part.args if part.args is not None else {}
    try:
        return json.loads(part.args or "{}")
    except ValueError:
        return part.args


def jsonable(value: Any) -> Any:
    """`value` as JSON has it; what JSON has no form for is text."""
    return pydantic_core.to_jsonable_python(value, fallback=str)

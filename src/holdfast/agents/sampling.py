"""A request's sampling fields, in OpenAI's words, as pydantic-ai's model settings."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Final, cast

from pydantic_ai.settings import ModelSettings

_AS_THEY_ARE: Final = (
    "temperature",
    "top_p",
    "top_k",
    "seed",
    "presence_penalty",
    "frequency_penalty",
    "logit_bias",
    "parallel_tool_calls",
)
_MODEL_SPECIFIC: Final = {
    "logprobs": "openai_logprobs",
    "top_logprobs": "openai_top_logprobs",
    "user": "openai_user",
    "reasoning_effort": "openai_reasoning_effort",
    "verbosity": "openai_text_verbosity",
}


def model_settings(fields: Mapping[str, Any]) -> ModelSettings:
    """The settings of `fields`; unknown ones and nulls are left out, because a model would refuse the request."""
    given = {name: value for name, value in fields.items() if value is not None}
    settings: dict[str, Any] = {name: given[name] for name in _AS_THEY_ARE if name in given}
    limit = given.get("max_completion_tokens", given.get("max_tokens"))
    if limit is not None:
        settings["max_tokens"] = limit
    stop = given.get("stop")
    if stop:
        settings["stop_sequences"] = [stop] if isinstance(stop, str) else list(stop)
    settings |= {ours: given[theirs] for theirs, ours in _MODEL_SPECIFIC.items() if theirs in given}
    if "response_format" in given:
        settings["extra_body"] = {"response_format": given["response_format"]}  # in OpenAI's words, for its kin
    return cast(ModelSettings, settings)

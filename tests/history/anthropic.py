"""Anthropic's rules on what pydantic-ai would send there, and on an OpenAI conversation put into its form.

Written from Anthropic's API reference: turns alternate and begin with the user; a turn's `tool_use` blocks are each
answered by one `tool_result` at the beginning of the very next user turn; ids are unique; no text block is blank.
"""

import functools
import json
import re
from typing import Any

from pydantic_ai.messages import ModelMessage, ModelRequest, UserPromptPart
from pydantic_ai.models import ModelRequestParameters
from pydantic_ai.models.anthropic import AnthropicModel
from pydantic_ai.providers.anthropic import AnthropicProvider

_ID = re.compile(r"[a-zA-Z0-9_-]+")

Turn = dict[str, Any]


def problems(messages: list[dict[str, Any]]) -> list[str]:
    """What Anthropic would refuse of an OpenAI conversation, as a gateway translates it."""
    return refused(translated(messages))


def translated(messages: list[dict[str, Any]]) -> list[Turn]:
    """The conversation in Anthropic's form, without mending anything but what the form itself joins."""
    turns: list[Turn] = []
    for message in messages:
        match message["role"]:
            case "system" | "developer":
                continue
            case "tool":
                block = {
                    "type": "tool_result",
                    "tool_use_id": message["tool_call_id"],
                    "content": message["content"],
                }
                last = turns[-1] if turns else None
                if last is not None and last["content"][-1:] and _is_result(last["content"][-1]):
                    last["content"].append(block)
                else:
                    turns.append({"role": "user", "content": [block]})
            case role:
                last = turns[-1] if turns else None
                if role == "user" and last is not None and last["content"][-1:] and _is_result(last["content"][-1]):
                    last["content"] += _blocks(message)  # results and the prompt behind them are one turn there
                else:
                    turns.append({"role": role, "content": _blocks(message)})
    return turns


async def mapped(history: list[ModelMessage], prompt: str) -> list[Turn]:
    """What pydantic-ai's own Anthropic model would send for a prompt after `history`; nothing is sent."""
    request = ModelRequest(parts=[UserPromptPart(prompt)])
    _, turns = await _model()._map_message([*history, request], ModelRequestParameters(), {})
    joined: list[Turn] = []  # as Anthropic does it: thoughts of another provider's model are turns of their own
    for turn in json.loads(json.dumps(turns, default=dict)):
        content = turn["content"]
        blocks = content if isinstance(content, list) else [{"type": "text", "text": content}]
        if joined and joined[-1]["role"] == turn["role"]:
            joined[-1]["content"] += blocks
        else:
            joined.append({"role": turn["role"], "content": list(blocks)})
    return joined


@functools.cache
def _model() -> AnthropicModel:
    return AnthropicModel("claude-sonnet-4-5", provider=AnthropicProvider(api_key="none"))


def refused(turns: list[Turn]) -> list[str]:
    """Each broken rule."""
    found = []
    if not turns or turns[0]["role"] != "user":
        found.append("the first turn is not the user's")
    if turns and turns[-1]["role"] != "user":
        found.append("the last turn is not the user's")
    asked: list[str] = []
    seen: set[str] = set()
    before = ""
    for at, turn in enumerate(turns):
        blocks = turn["content"] if isinstance(turn["content"], list) else [{"type": "text", "text": turn["content"]}]
        if turn["role"] == before:
            found.append(f"{at}: two {before} turns in a row")
        before = turn["role"]
        if not blocks:
            found.append(f"{at}: an empty turn")
        if any(block["type"] == "text" and not block["text"].strip() for block in blocks):
            found.append(f"{at}: a blank text block")
        results = [b["tool_use_id"] for b in blocks if b["type"] == "tool_result"]
        if sorted(results) != sorted(asked):
            found.append(f"{at}: results {results} for calls {asked}")
        if results and any(b["type"] != "tool_result" for b in blocks[: len(results)]):
            found.append(f"{at}: results are not first in their turn")
        asked = [b["id"] for b in blocks if b["type"] == "tool_use"]
        for call in asked:
            if call in seen or not _ID.fullmatch(call):
                found.append(f"{at}: the call id {call!r} is used twice or has foreign letters")
            seen.add(call)
        if any(not isinstance(b["input"], dict) for b in blocks if b["type"] == "tool_use"):
            found.append(f"{at}: a call whose input is no object")
    if asked:
        found.append(f"calls {asked} without results at the end")
    return found


def _is_result(block: dict[str, Any]) -> bool:
    return bool(block["type"] == "tool_result")


def _blocks(message: dict[str, Any]) -> list[dict[str, Any]]:
    content = message.get("content")
    texts = [content] if isinstance(content, str) else [p["text"] for p in content or []]
    blocks: list[dict[str, Any]] = [{"type": "text", "text": text} for text in texts]
    calls = message.get("tool_calls") or []
    if calls and texts == [""]:
        blocks = []  # OpenAI's form of a turn that only calls tools
    for call in calls:
        function = call["function"]
        blocks.append(
            {
                "type": "tool_use",
                "id": call["id"],
                "name": function["name"],
                "input": json.loads(function["arguments"]),
            }
        )
    return blocks

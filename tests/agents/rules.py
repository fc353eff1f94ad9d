"""What OpenAI and Anthropic accept as a conversation, written from their documents and not from our code.

`problems` checks the messages of a chat-completions request, as they go over the wire. The rules of Anthropic are
checked on the same conversation in its form, where results and prompts are content of user turns.
"""

import json
import re
from typing import Any

NAME = re.compile(r"[A-Za-z0-9_-]{1,64}")
CALL_ID = re.compile(r"[A-Za-z0-9_-]+")


def problems(messages: list[dict[str, Any]]) -> list[str]:
    """Each broken rule of either provider, in order of appearance; empty means that both accept it."""
    talk = [m for m in messages if m["role"] not in ("system", "developer")]
    return [*_openai(talk), *_anthropic(talk)]


def _openai(talk: list[dict[str, Any]]) -> list[str]:
    found: list[str] = []
    waiting: list[str] = []
    before = ""
    for at, message in enumerate(talk):
        role = message["role"]
        if role == "tool":
            if message["tool_call_id"] not in waiting:
                found.append(f"openai {at}: a result for no open call, {message['tool_call_id']}")
            else:
                waiting.remove(message["tool_call_id"])
            before = role
            continue
        if waiting:
            found.append(f"openai {at}: {role} while calls have no result: {waiting}")
            waiting = []
        if role == "user" and before == "user":
            found.append(f"openai {at}: two user turns in a row")
        if role == "assistant":
            if before == "assistant":
                found.append(f"openai {at}: two assistant turns in a row")
            found += [f"openai {at}: {problem}" for problem in _assistant(message)]
            waiting = [call["id"] for call in message.get("tool_calls") or []]
        before = role
    return [*found, *([f"openai: calls without a result at the end: {waiting}"] if waiting else [])]


def _assistant(message: dict[str, Any]) -> list[str]:
    calls = message.get("tool_calls") or []
    found = [] if calls or _text(message) else ["an empty answer"]
    for call in calls:
        if not NAME.fullmatch(call["function"]["name"]):
            found.append(f"a tool named {call['function']['name']!r}")
        try:
            if not isinstance(json.loads(call["function"]["arguments"]), dict):
                found.append("arguments that are no object")
        except ValueError:
            found.append("arguments that are no JSON")
    return found


def _anthropic(talk: list[dict[str, Any]]) -> list[str]:
    turns: list[tuple[str, list[dict[str, Any]]]] = []
    for message in talk:
        role = "assistant" if message["role"] == "assistant" else "user"
        if turns and turns[-1][0] == role:
            turns[-1][1].append(message)
        else:
            turns.append((role, [message]))
    found = ["anthropic: the first turn is not the user's"] if turns and turns[0][0] != "user" else []
    seen: set[str] = set()
    asked: list[str] = []
    for at, (role, content) in enumerate(turns):
        if role == "user":
            found += [f"anthropic {at}: {problem}" for problem in _user_turn(content, asked)]
            asked = []
            continue
        if len(content) > 1:
            found.append(f"anthropic {at}: two assistant messages in one turn")
        asked = [call["id"] for message in content for call in message.get("tool_calls") or []]
        for call in asked:
            if call in seen:
                found.append(f"anthropic {at}: the call id {call} is used twice")
            if not CALL_ID.fullmatch(call):
                found.append(f"anthropic {at}: the call id {call!r} has letters it may not have")
            seen.add(call)
        for message in content:
            if message.get("content") and not _text(message):
                found.append(f"anthropic {at}: a text block of blanks")
    return found


def _user_turn(content: list[dict[str, Any]], asked: list[str]) -> list[str]:
    results = [m["tool_call_id"] for m in content if m["role"] == "tool"]
    first_prompt = next((i for i, m in enumerate(content) if m["role"] == "user"), len(content))
    found = []
    if sorted(results) != sorted(asked):
        found.append(f"results for {results} where {asked} were asked for")
    if any(m["role"] == "tool" for m in content[first_prompt:]):
        found.append("a result behind the prompt of the same turn")
    if any(m["role"] == "user" and not _text(m) for m in content):
        found.append("a prompt of blanks")
    return found


def _text(message: dict[str, Any]) -> str:
    content = message.get("content") or ""
    if isinstance(content, str):
        return content.strip()
    return "".join(item.get("text", "x") for item in content).strip()

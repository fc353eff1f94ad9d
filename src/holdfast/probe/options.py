"""What a user may say about a probe, and the limits by which a server is judged."""

from __future__ import annotations

import json
from dataclasses import dataclass
from typing import Any, Final

STOP_S: Final = 3.5  # from a stop to the terminal event: stop_grace (2) + 1.5
SUPERSEDE_S: Final = 3.5  # from prompt B to its start, whatever A does
NEXT_S: Final = 3.0  # how much later than a lone prompt one is answered that comes after a left or superseded one
FIVE_S: Final = 3.0  # how much later than a lone prompt's end each of five ends
CLOSE_S: Final = 3.0  # from the last byte that means something ([DONE], the terminal event) to the end of the stream
UPSTREAM_S: Final = 2.0  # from a stop or a disconnect to the close that the model saw
HEALTH_S: Final = 1.0
ANSWER_S: Final = 5.0  # of a request that starts no work: a record, a refusal, a stop
LEAVE_S: Final = 2.0  # document 4: the client goes away after two seconds


@dataclass(frozen=True)
class Tool:
    """A tool of the served agent that a scenario may call, and with what."""

    name: str
    args: str = "{}"

    @classmethod
    def parse(cls, text: str) -> Tool:
        """Read `name {"json": "args"}`.

        Raises:
            ValueError: There is no name, or the rest is no JSON object.
        """
        name, _, args = text.strip().partition(" ")
        try:
            found: Any = json.loads(args) if args.strip() else {}
        except ValueError:
            found = None
        if not name or not isinstance(found, dict):
            raise ValueError(f'{text!r} is no tool call such as: sleep {{"seconds": 30}}')
        return cls(name, json.dumps(found))


@dataclass(frozen=True)
class Options:
    """How to probe.

    Attributes:
        url: The server, with or without /v1.
        api_key: Sent as `Authorization: Bearer`.
        holdfast_key: The same, and only once the server has said that it is a Holdfast.
        model: The model's name, or the agent's; the server's first by default.
        session_header: Names the session in /v1/chat/completions.
        sessions: The header was given, so that a server that pays no heed to it fails.
        prompt: What to ask a model that follows no script.
        long_prompt: What makes such a model answer for several seconds.
        max_tokens: Limits each answer of a chat completion; None sends no limit.
        upstream_stats: `GET /_stats` of the rehearsal model behind the server.
        tool: A tool that works for long and can be cancelled.
        blocking_tool: A tool that works for seconds and cannot be cancelled.
        leave_s: When a client goes away in the middle of an answer.
        timeout_s: The longest wait for anything.
        total_s: The longest that all may take.
        slack_s: Added to each limit of a promise: what the network and a busy machine may take.
        seed: Of what is chosen by chance.
    """

    url: str
    api_key: str | None = None
    holdfast_key: str | None = None
    model: str | None = None
    session_header: str = "X-Session-Id"
    sessions: bool = False
    prompt: str = "Say hello in one short sentence."
    long_prompt: str = "Write an essay of ten long paragraphs about the sea."
    max_tokens: int | None = None
    upstream_stats: str | None = None
    tool: Tool = Tool("sleep", '{"seconds": 30}')
    blocking_tool: Tool = Tool("block", '{"seconds": 4}')
    leave_s: float = LEAVE_S
    timeout_s: float = 30.0
    total_s: float = 600.0
    slack_s: float = 0.5
    seed: int = 0

    def within(self, promised_s: float) -> float:
        """The limit of a promise, as it is judged here."""
        return min(promised_s + self.slack_s, self.timeout_s)

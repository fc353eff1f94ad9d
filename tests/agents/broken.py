"""Models that break once in a way that no server of ours can script."""

from collections.abc import AsyncIterator
from typing import Any

from pydantic_ai.exceptions import ModelConnectionError
from pydantic_ai.messages import ModelMessage, ModelRequest, ToolReturnPart
from pydantic_ai.models.function import AgentInfo, DeltaToolCall, DeltaToolCalls, FunctionModel


class HalfACall(FunctionModel):
    """Loses its connection in the middle of a call's arguments, then calls whole, by the same id, then answers."""

    def __init__(self) -> None:
        self.asked = 0
        super().__init__(stream_function=self._answer)

    async def _answer(self, messages: list[ModelMessage], info: AgentInfo) -> AsyncIterator[str | DeltaToolCalls]:
        self.asked += 1
        last = messages[-1]
        if isinstance(last, ModelRequest) and any(isinstance(part, ToolReturnPart) for part in last.parts):
            yield "done"
            return
        if self.asked == 1:
            yield {0: DeltaToolCall(name="look", json_args='{"a": ', tool_call_id="call_0")}
            raise ModelConnectionError("half", "gone", phase="read")
        yield {0: DeltaToolCall(name="look", json_args="{}", tool_call_id="call_0")}


class Dies(FunctionModel):
    """Says something, loses its connection, and is not there any more."""

    def __init__(self) -> None:
        self.asked = 0
        super().__init__(stream_function=self._answer)

    async def _answer(self, messages: list[ModelMessage], info: AgentInfo) -> AsyncIterator[Any]:
        self.asked += 1
        if self.asked > 1:
            raise ModelConnectionError("dead", "refused", phase="connect")
        yield "half an "
        raise ModelConnectionError("dead", "gone", phase="read")

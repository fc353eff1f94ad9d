"""What a model does wrong with a tool is a result for it to read, however often it does it.

pydantic-ai gives each tool, and the names that no tool has, a budget of retries, one by default, and ends the run when
it is spent. An hour's work must not be lost because a model wrote bad arguments twice. So while the budget lasts the
library asks the model again, in its own words; once it is spent, each further mistake is a plain failed result. What
ends a model that never learns is a budget that says so: steps, tool calls, identical calls, the deadline.
"""

from __future__ import annotations

from typing import Any, Final

from pydantic import ValidationError
from pydantic_ai.exceptions import (
    ApprovalRequired,
    CallDeferred,
    ModelRetry,
    RunCancelled,
    ToolFailed,
    ToolFailedError,
    ToolRetryError,
    UnexpectedModelBehavior,
    UserError,
)
from pydantic_ai.messages import ToolCallPart, ToolReturnPart
from pydantic_ai.tool_manager import ToolManager, ValidatedToolCall

from holdfast.agents.results import cut, words
from holdfast.domain.errors import RunEnded

_PASSES: Final = (ApprovalRequired, CallDeferred, ModelRetry, RunCancelled, RunEnded, ToolFailed, UserError)


class PatientToolManager(ToolManager[Any]):
    """The library's tool manager, which calls no run off for a model's mistake."""

    async def validate_tool_call(
        self,
        call: ToolCallPart,
        *,
        approved: bool = False,
        metadata: Any = None,
        wrap_validation_errors: bool = True,
    ) -> ValidatedToolCall[Any]:
        """As the library's; a spent budget, or a validator that breaks, is a failed result."""
        check = super().validate_tool_call
        if not wrap_validation_errors:
            return await check(call, approved=approved, metadata=metadata, wrap_validation_errors=False)
        try:
            return await check(call, approved=approved, metadata=metadata)
        except _PASSES:
            raise
        except UnexpectedModelBehavior as error:
            return self._refused(call, mistake(error))
        except Exception as error:  # noqa: BLE001 - a validator is the tool's code: its fault is the tool's result
            return self._refused(call, f"the arguments could not be checked: {words(error)}")

    async def execute_tool_call(self, validated: ValidatedToolCall[Any], *, wrap_validation_errors: bool = True) -> Any:
        """As the library's; a spent budget, or a hook around the tool that breaks, is a failed result."""
        execute = super().execute_tool_call
        if not wrap_validation_errors:
            return await execute(validated, wrap_validation_errors=False)
        try:
            return await execute(validated)
        except (*_PASSES, ToolFailedError, ToolRetryError):
            raise
        except UnexpectedModelBehavior as error:
            raise _failed(validated.call, mistake(error)) from error
        except Exception as error:  # a hook of the agent's: its fault is the call's, not the run's
            raise _failed(validated.call, words(error)) from error

    def _refused(self, call: ToolCallPart, why: str) -> ValidatedToolCall[Any]:
        ctx = self.ctx
        if ctx is None:
            raise RuntimeError("a call was validated before the tools of its step were there")
        return ValidatedToolCall(call, None, ctx, args_valid=False, validation_error=_failed(call, why))


def _failed(call: ToolCallPart, why: str) -> ToolFailedError:
    return ToolFailedError(ToolReturnPart(call.tool_name, why, tool_call_id=call.tool_call_id, outcome="failed"))


def patient(manager: ToolManager[Any]) -> PatientToolManager:
    """`manager` with this patience, which it hands on to the manager of each later step."""
    return PatientToolManager(
        toolset=manager.toolset,
        root_capability=manager.root_capability,
        ctx=manager.ctx,
        tools=manager.tools,
        failed_tools=manager.failed_tools,
        succeeded_tools=manager.succeeded_tools,
        availability_refused=manager.availability_refused,
        default_max_retries=manager.default_max_retries,
        resolved_capability_ids=manager.resolved_capability_ids,
    )


def mistake(error: UnexpectedModelBehavior) -> str:
    """What the model did wrong, behind the library's word that it did so too often."""
    cause = error.__cause__
    match cause:
        case ValidationError():
            faults = cause.errors(include_url=False, include_context=False, include_input=False)
            said = "; ".join(f"{'.'.join(map(str, fault['loc'])) or 'arguments'}: {fault['msg']}" for fault in faults)
            return cut(f"the arguments do not fit: {said}")
        case ModelRetry():
            return cut(cause.message)
        case _:
            return words(error)

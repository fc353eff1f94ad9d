"""The models that agents speak to: how they are named, reached, bounded and watched."""

from holdfast.models.bounds import AnswerUnreadable, BoundedStream, coding_of
from holdfast.models.breaker import Breakers
from holdfast.models.errors import ModelBadResponse, ModelBreakerOpen, ModelStalled, ModelTruncated
from holdfast.models.guard import GuardedModel, is_guarded
from holdfast.models.resolve import ModelClient, ModelConfigError
from holdfast.models.routes import ModelGuard, ModelLimits
from holdfast.models.scope import RequestScope, in_scope
from holdfast.models.verdicts import restart_reason

__all__ = [
    "AnswerUnreadable",
    "BoundedStream",
    "Breakers",
    "GuardedModel",
    "ModelBadResponse",
    "ModelBreakerOpen",
    "ModelClient",
    "ModelConfigError",
    "ModelGuard",
    "ModelLimits",
    "ModelStalled",
    "ModelTruncated",
    "RequestScope",
    "coding_of",
    "in_scope",
    "is_guarded",
    "restart_reason",
]

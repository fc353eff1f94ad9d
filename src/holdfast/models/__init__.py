"""The models that agents speak to: how they are named, reached, bounded and watched."""

from holdfast.models.errors import ModelBadResponse, ModelStalled, ModelTruncated
from holdfast.models.guard import GuardedModel, ModelLimits
from holdfast.models.resolve import ModelClient, ModelConfigError
from holdfast.models.scope import RequestScope, in_scope

__all__ = [
    "GuardedModel",
    "ModelBadResponse",
    "ModelClient",
    "ModelConfigError",
    "ModelLimits",
    "ModelStalled",
    "ModelTruncated",
    "RequestScope",
    "in_scope",
]

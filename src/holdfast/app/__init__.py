"""The composition root: puts the parts together and runs them."""

from holdfast.app.checking import check
from holdfast.app.errors import StartError
from holdfast.app.runtime import Runtime
from holdfast.app.serving import serve
from holdfast.app.startup import Startup, table
from holdfast.app.working import work

__all__ = ["Runtime", "StartError", "Startup", "check", "serve", "table", "work"]

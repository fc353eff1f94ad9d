"""HTTP in front of the engine: reads the log, creates runs, flags stops. Holds no run state, runs no user code."""

from holdfast.gateway.app import GatewayApp, create_app
from holdfast.gateway.server import BindError, Server

__all__ = ["BindError", "GatewayApp", "Server", "create_app"]

"""An agent with a tool that speaks while it works and an MCP server; copied beside a database, never imported here."""

import sys
import time
from pathlib import Path

from fastmcp.client.transports import StdioTransport
from pydantic_ai import Agent
from pydantic_ai.mcp import MCPToolset

from holdfast.tools import progress

HERE = Path(__file__).parent
server = MCPToolset(StdioTransport(sys.executable, [str(HERE / "mcp_server.py"), str(HERE / "mcp.jsonl")]))
smith = Agent(name="smith", toolsets=[server])


@smith.tool_plain
def build(lines: int) -> str:
    """Block a thread and say so, line by line, until somebody has read the first one."""
    for n in range(lines):
        progress(f"line {n}\n")
    until = time.monotonic() + 20
    while not (HERE / "heard").exists() and time.monotonic() < until:
        time.sleep(0.01)
    progress("the end\n")
    return "built"

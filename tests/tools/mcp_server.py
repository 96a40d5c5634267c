"""A real MCP server for the tests: over stdio, or with a port as argument over streamable HTTP."""

import os
import sys
import time

calls = 0


def add(a: int, b: int) -> int:
    """Add two numbers."""
    return a + b


def next_number() -> int:
    """Count the calls."""
    global calls
    calls += 1
    return calls


def fail() -> str:
    """Raise an error."""
    raise RuntimeError("it is broken")


def sleep(seconds: float) -> str:
    """Take some time."""
    time.sleep(seconds)
    return "awake"


def die() -> str:
    """End the server."""
    os._exit(1)


def process() -> int:
    """Tell the server's process id."""
    return os.getpid()


def variable(name: str) -> str:
    """Tell an environment variable."""
    return os.environ.get(name, "(none)")


def much() -> str:
    """Say much."""
    return "x" * 100_000


def main(port=None):
    try:
        from mcp.server.fastmcp import Context
        from mcp.server.fastmcp import FastMCP as Server
    except ModuleNotFoundError:  # mcp 2 has renamed it
        from mcp.server.mcpserver import Context
        from mcp.server.mcpserver import MCPServer as Server

    address = {} if port is None else {"host": "127.0.0.1", "port": int(port)}
    old = Server.__name__ == "FastMCP"
    server = Server("tests", **(address if old else {}))
    for function in (add, next_number, fail, sleep, die, process, variable, much):
        server.tool()(function)

    @server.tool()
    async def ask(context: Context) -> str:
        """Report to the client, and ask its model."""
        from mcp.types import SamplingMessage, TextContent

        await context.info("at work")
        await context.report_progress(1, 2, "half done")
        question = SamplingMessage(role="user", content=TextContent(type="text", text="Which colour?"))
        answer = await context.session.create_message([question], max_tokens=5)
        return answer.content.text

    server.run("stdio" if port is None else "streamable-http", **({} if old else address))


if __name__ == "__main__":
    main(*sys.argv[1:])

"""Tools: what a model can call between its turns of an environment. See :class:`gem.tools.tool_env_wrapper`."""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence

from gem.tools.base_tool import BaseTool
from gem.tools.mcp_tool import MCPTool
from gem.tools.python_code_tool import PythonCodeTool
from gem.tools.search_tool import SearchTool
from gem.tools.tool_env_wrapper import ToolEnvWrapper

__all__ = ["TOOLS", "BaseTool", "MCPTool", "PythonCodeTool", "SearchTool", "ToolEnvWrapper", "make_tools"]

TOOLS: dict[str, Callable[[], BaseTool]] = {"python": PythonCodeTool, "search": SearchTool}
"""Tools that :func:`gem.make` and the examples know by name."""


def make_tools(names: str | Sequence[str]) -> list[BaseTool]:
    """Build tools by their names in :data:`TOOLS`.

    >>> [tool.tool_type for tool in make_tools("python,search")]
    ['python_code', 'search']

    Args:
        names: a list, or a text in which they are separated by ``,`` or ``+``.

    Raises:
        ValueError: there is no tool of that name.
    """
    if isinstance(names, str):
        names = [name for name in re.split(r"[,+\s]+", names) if name]
    for name in names:
        if name not in TOOLS:
            raise ValueError(f"there is no tool {name!r}; there are {', '.join(TOOLS)}")
    return [TOOLS[name]() for name in names]

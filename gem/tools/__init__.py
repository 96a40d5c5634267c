"""Tools: what a model can call between its turns of an environment. See :class:`gem.tools.tool_env_wrapper`."""

from gem.tools.base_tool import BaseTool
from gem.tools.mcp_tool import MCPTool
from gem.tools.python_code_tool import PythonCodeTool
from gem.tools.search_tool import SearchTool
from gem.tools.tool_env_wrapper import ToolEnvWrapper

__all__ = ["BaseTool", "MCPTool", "PythonCodeTool", "SearchTool", "ToolEnvWrapper"]

"""The tasks of MCPMark are not supported: they need accounts and containers of the services that they work on."""

from gem.refusals import refuse

__getattr__ = refuse(
    __name__,
    ["MCPMarkEnv"],
    "MCP servers are gem.tools.MCPTool, around any environment: ToolEnvWrapper(env, [MCPTool(config)]).",
)

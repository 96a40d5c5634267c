"""MCP servers that come with the package."""

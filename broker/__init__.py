"""The broker: the only package that knows MCP, HTTP and the command line."""

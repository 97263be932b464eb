"""One module for each family of tools.

Outside the walls. May import session, scope, decisions; never HTTP, MCP or the audit.
"""

"""MCP over either transport.

Outside the walls. May import http, session and what these stand on; the SDK.
"""

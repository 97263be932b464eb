"""The places that no session may change.

Outside the walls. May import policy, config and the kernel edge.
"""

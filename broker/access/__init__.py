"""Checks of callers: which processes may connect at all.

Outside the walls. May import audit and contract, and the kernel edge.
"""

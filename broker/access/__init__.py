"""Who may call.

Outside the walls. May import audit and contract, and the kernel edge.
"""

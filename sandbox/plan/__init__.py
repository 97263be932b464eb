"""Plan of a session: its walls, namespaces, limits and user.

Outside the walls. May import machine and the kernel.
"""

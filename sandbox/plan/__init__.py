"""What a session is to get: walls, spaces, limits, user.

Outside the walls. May import machine and the kernel.
"""

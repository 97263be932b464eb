"""Files inside the walls, as the broker asks for them.

Outside the walls. May import the kernel and wire.
"""

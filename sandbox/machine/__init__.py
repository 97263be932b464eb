"""Facts about this machine.

Outside the walls. May import the kernel.
"""

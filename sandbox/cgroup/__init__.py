"""Control groups.

Outside the walls. May import plan, machine and the kernel.
"""

"""The broker's side of a session's init and its keepers.

Outside the walls. May import cgroup, plan, machine and the kernel.
"""

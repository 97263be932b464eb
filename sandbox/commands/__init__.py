"""One command, from plan to end.

Outside the walls. May import init, cgroup, plan, machine and the kernel.
"""

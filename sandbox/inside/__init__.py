"""The processes of a session.

Inside the walls. May import the kernel, wire, protocol and paths.
"""

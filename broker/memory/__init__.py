"""Memory of large bodies and answers, over all clients.

Outside the walls. May import sandbox.threads.
"""

"""What large things may take, over all clients.

Outside the walls. May import sandbox.threads.
"""

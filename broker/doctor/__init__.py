"""`python -m broker doctor`.

Outside the walls. May import all of the broker but app.
"""

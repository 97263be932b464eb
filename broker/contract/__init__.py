"""Everything a client may say and hear.

Outside the walls. May import nothing of ours.
"""

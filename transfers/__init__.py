"""Uploads and downloads: machines without IO (`*_state`), and the tables that perform them (`store.open_transfers`).

Outside the walls. Knows no session, no wire code and no policy, and imports nothing of ours: descriptors come in that
were opened, and decided on, elsewhere.
"""

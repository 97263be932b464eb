"""Chunked uploads and downloads: sans-IO machines (`upload`, `download`) and the tables that perform them.

`store.open_transfers` is the way in. The package knows no session class, no wire code and no policy: it is
handed descriptors that were opened, and decided, elsewhere, and answers or raises `refusals`.
"""

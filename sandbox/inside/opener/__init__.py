"""The process that opens files.

Inside the walls. May import worker and unfinished.
"""

"""The process that does one slow piece of work.

Inside the walls. May import unfinished.
"""

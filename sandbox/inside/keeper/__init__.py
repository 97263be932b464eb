"""The process above one command.

Inside the walls. May import what inside and outside share.
"""

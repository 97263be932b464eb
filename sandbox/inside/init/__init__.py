"""The process that confines itself, and forks the others.

Inside the walls. May import all that is inside.
"""

"""What is half made, and how it gets its name or goes.

Inside the walls. May import what inside and outside share.
"""

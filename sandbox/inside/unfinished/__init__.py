"""Files and trees that are half made, and how they get their names or go.

Inside the walls. May import what inside and outside share.
"""

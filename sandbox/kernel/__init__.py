"""System calls, raw.

On both sides of the walls, stdlib only. May import paths.
"""

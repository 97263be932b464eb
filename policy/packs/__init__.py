"""Patterns that any policy can pull in by name.

Pure. May import policy.
"""

"""The audit: which events are written down, and which values never are.

Outside the walls. May import contract.
"""

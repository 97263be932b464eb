"""What is written down, and what never is.

Outside the walls. May import contract.
"""

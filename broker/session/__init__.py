"""Sessions, and all that lives between calls.

Outside the walls. May import contract, memory, the kernel edge and transfers.
"""

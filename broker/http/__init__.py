"""Our layer under the SDK, and the door of raw transfers.

Outside the walls. May import session, access, audit and records; never a tool or the policy.
"""

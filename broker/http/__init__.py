"""Our layer under the SDK, and raw transfers over a URL.

Outside the walls. May import session, access, audit, records and sandbox.threads; never a tool or the policy.
"""

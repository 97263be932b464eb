"""Read, check and explain the two configuration files; nothing else in the program reads them.

Outside the walls. May import policy and sandbox.plan. Every room of the broker may import `config.settings`, as values.
"""

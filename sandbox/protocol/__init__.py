"""Messages between the broker and the processes of a session: a name and a type for each, and what is legal when.

On both sides of the walls, stdlib only. May import nothing of ours: `wire.py` carries the messages as JSON, which makes
a list of every tuple. The types exist for the type checker alone (importing typing costs each session half a megabyte);
the constants and the tables of what is legal are there at run time. What comes from inside the walls is said by a
process that a session may have taken over: the broker looks at it first.
"""

"""The rules for what a session may do: pure decisions over frozen values.

Owns the grammar of `policy.yaml` (`rules.py`) and the four questions asked of it: may this argv run
(`command.py`), may this path be touched (`path.py`), may this variable be set (`environment.py`), and what
does the answer say to a person (`explain.py`). An answer is a value (`decision.py`), never an exception.

Must not know: trio, files, processes, the wire. Facts that only the kernel knows come in as arguments.
"""

"""The kernel edge: everything between a decision and what the kernel does about it.

Knows no policy rules and no wire codes. This file imports nothing on purpose: the session init imports the
package from an interpreter without site-packages and pays for every module it loads.
"""

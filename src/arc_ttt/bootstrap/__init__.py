"""Everything that happens before another package may be imported: mounts, wheels, the environment, the guard.

Touches the standard library only, and nothing else of this project. Start at `mounts.py`.
"""

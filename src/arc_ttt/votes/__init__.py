"""Many candidate grids become two attempts.

Touches `tasks` only; every function is pure. Start at `rules.py`.
"""

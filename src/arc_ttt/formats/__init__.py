"""A task as token ids, and generated ids back as a grid: one format for each kind of checkpoint.

Touches `tasks` only. Start at `format.py`.
"""

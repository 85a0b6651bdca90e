"""Model folders read without torch: what they hold, their shape, and the memory they need by formula.

Touches JSON files, `settings`, `presets` and `protocol`. Start at `checkpoint.py`.
"""

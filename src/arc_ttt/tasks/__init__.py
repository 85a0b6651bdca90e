"""Tasks as they are read from files, and the views under which a model sees them.

Touches NumPy and `errors`; a `Task` holds no answers. Start at `grids.py`.
"""

"""Named sets of tasks with their solutions, and packs of training pairs.

Touches files; solutions live here and never in `arc_ttt`. Start at `datasets.py`.
"""

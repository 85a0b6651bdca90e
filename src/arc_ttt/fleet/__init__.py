"""Worker processes: start, feed, watch and kill them.

Touches processes and pipes; knows nothing of tasks and answers. Start at `fleet.py`.
"""

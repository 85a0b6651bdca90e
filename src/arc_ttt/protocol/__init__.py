"""What coordinator and workers say to each other: jobs, and one class for each kind of line.

Touches `tasks`, `votes` and JSON; no processes and no files. Start at `messages.py`.
"""

"""One run, from tasks to submission.json: the coordinator and what it keeps on the disk.

Touches everything but torch. Start at `coordinator.py`.
"""

"""Every check of a submission that can be made at home, one line each.

Touches the bundle, the metadata and a trial run; never Kaggle. Start at `command.py`.
"""

"""A run on Kaggle: mounts in, submission out, whatever is missing or wrong.

Touches `bootstrap` and `run`. Start at `run.py`.
"""

"""Runs at home that end with a score: dry runs, ablations, recounts, benchmarks.

Touches `data` and all of `arc_ttt`. Start at `dry_run.py`.
"""

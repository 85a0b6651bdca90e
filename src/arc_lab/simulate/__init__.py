"""The real coordinator and schedule in virtual time, with workers that only pretend.

Touches no torch, no process and no real clock. Start at `simulation.py`.
"""

"""Build a training pack from generators, with every public evaluation pair kept out.

Touches `data` and processes of generators; no torch. Start at `command.py`.
"""

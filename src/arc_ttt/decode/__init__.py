"""Read answers off a model: greedy, by search, and the likelihood of given grids.

Touches torch, `model` and `formats`; changes no weight. Start at `answerer.py`.
"""

"""Programs that reproduce a task's demonstrations, found by search on a CPU, without any model.

Touches NumPy, SciPy, `tasks` and `deadline`. Start at `solver.py`: `synthesize` is all that other folders need.
"""

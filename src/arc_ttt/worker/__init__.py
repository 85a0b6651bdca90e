"""What happens inside one worker process: jobs come in, candidates go out.

Touches everything below it; torch only where a model is loaded. Start at `solver.py`, the story of one task.
"""

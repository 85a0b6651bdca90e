"""What runs next, and what it will cost: predictions and policy.

Touches no process and no clock; every decision is a function of what it is given. Start at `plan.py`.
"""

"""The steps that programs are made of, one function and one row of a table each.

Touches `images.py` of the folder above. Start at `images.py`.
"""

"""Rules that give every output cell its colour: features of cells and trees over them.

Touches NumPy and the images of the folder above. Start at `rules.py`.
"""

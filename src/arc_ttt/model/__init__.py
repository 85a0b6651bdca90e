"""Load a Llama onto a device, in 4 or 16 bits, by transformers or unsloth.

Touches torch and one device; knows no tasks. Start at `load.py`.
"""

"""Make a small Llama: feed, loop, checkpoints, card, and its 4-bit form.

Touches torch and packs. Start at `pretrain.py`.
"""

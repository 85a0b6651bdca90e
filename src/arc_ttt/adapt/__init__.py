"""Test-time training: sequences from a task's demonstrations, and the adapter that learns them.

Touches torch, `model`, `tasks` and `formats`; reads no answers. Start at `adapter_trainer.py`.
"""

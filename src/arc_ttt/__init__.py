"""Test-time training for ARC: the part that runs on Kaggle. Modules import one way; see README.md, map of the code."""

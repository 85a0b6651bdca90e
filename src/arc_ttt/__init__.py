"""Test-time training for ARC: the part that runs on Kaggle. Folders import one way; src/README.md shows the order."""

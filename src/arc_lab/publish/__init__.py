"""From a clone to a submission: wheels, bundle, preflight, rehearsal, push, submit.

Touches the kaggle command line and the network only where the command says so. Start at `bundle.py`.
"""

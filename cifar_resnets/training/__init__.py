"""Optimizers, schedules, seeding, learning-rate search and the fast training loop.

Start with `schedules.py`; `classifier.py` beside this package puts the parts together.
"""

"""Theoretical, measured and effective receptive fields of any network; independent of the rest of the project.

Start with `theory.py`. `tracer.py` runs a network and applies a rule of `rules/` to each of its operations.
"""

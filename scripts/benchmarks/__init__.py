"""The parts of `scripts/benchmark.py`, a module each.

A part has `add_arguments`, which adds its options to a parser; `measure`, which returns all figures in primitives,
with the name of the device they were taken on as `device`; and `markdown`, which writes them as tables and sentences.
"""

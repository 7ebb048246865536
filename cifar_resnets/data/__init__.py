"""Data sources: each is a `LightningDataModule` whose images lie in memory.

Start with `datamodule.py`, the base class, and `digits.py`, the shortest source.
"""

"""Rules: what each operation of PyTorch does to receptive fields.

Start with `base.py`; `registry.py` holds the table of all rules. To add an operation, add a function and a line in the
table of the module that it belongs to.
"""

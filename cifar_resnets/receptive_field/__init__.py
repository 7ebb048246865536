"""Theoretical, measured and effective receptive fields of any network; stands alone."""

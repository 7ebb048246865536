"""The folders of runs, read back without torch."""

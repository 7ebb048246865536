"""Reads the folders of runs, without torch."""

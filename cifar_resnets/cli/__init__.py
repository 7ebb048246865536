"""The command line: one module for each command; bad input becomes one line."""

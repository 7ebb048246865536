"""Optimizer, schedule, seeds, learning-rate search and the fast training loop."""

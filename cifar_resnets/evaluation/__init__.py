"""Evaluates predictions: accuracies, calibration, test-time augmentation, mistakes."""

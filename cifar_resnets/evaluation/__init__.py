"""Numbers from predictions: accuracies, calibration, test-time augmentation, mistakes."""

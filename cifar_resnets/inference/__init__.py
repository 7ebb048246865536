"""A trained network that is used: its preprocessing, its predictions and their heatmaps; no Trainer, no Lightning.

Start with `classifier.py`: `load` reads a checkpoint, and `TrainedClassifier` takes images.
"""

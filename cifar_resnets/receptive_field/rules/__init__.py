"""What each operation of PyTorch does to receptive fields, one rule for each."""

"""Every figure, drawn by one function each; knows nothing of Lightning."""

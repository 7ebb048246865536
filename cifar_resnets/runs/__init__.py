"""Where a run keeps its files, and what it remembers of itself."""

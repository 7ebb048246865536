"""Several processes that train together: collectives, batch norm over ranks, failing ranks, schedulers, signals."""

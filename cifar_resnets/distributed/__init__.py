"""Several processes that train together: collectives, batch norm over ranks, schedulers, signals."""

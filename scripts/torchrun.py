"""Runs torchrun for `scripts/torchrun.sh` and ends with the exit status of the program; torchrun's own is always 1."""

from __future__ import annotations

import sys

from torch.distributed.elastic.multiprocessing.api import SignalException
from torch.distributed.elastic.multiprocessing.errors import ChildFailedError
from torch.distributed.elastic.rendezvous.api import RendezvousError
from torch.distributed.run import main

if __name__ == "__main__":
    try:
        main()
    except ChildFailedError as error:
        rank, failure = error.get_first_failure()
        if failure.exitcode > 0:  # the rank has reported its error
            sys.exit(failure.exitcode)
        print(f"scripts/torchrun.sh: rank {rank} was killed by signal {-failure.exitcode}", file=sys.stderr)
        sys.exit(128 - failure.exitcode)  # as a shell shows it
    except SignalException as stop:
        # torchrun has passed the signal on, and waited for the processes to write a checkpoint
        sys.exit(128 + stop.sigval)
    except RendezvousError as error:
        sys.exit(f"scripts/torchrun.sh: the nodes do not meet at RDZV_ENDPOINT: {error}")

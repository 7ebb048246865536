"""torchrun, for `scripts/torchrun.sh`: it ends with the status of the program; its own is 1 whatever has happened."""

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
        status = error.get_first_failure()[1].exitcode
        sys.exit(status if status > 0 else 128 - status)  # as a shell shows it
    except SignalException as stop:
        # the processes have had the signal as well, and time to write a checkpoint
        sys.exit(128 + stop.sigval)
    except RendezvousError as error:
        sys.exit(f"scripts/torchrun.sh: the nodes do not meet at RDZV_ENDPOINT: {error}")

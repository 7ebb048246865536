"""Freed memory that stays with the process: to get it anew in each training step is dear on a CPU."""

from __future__ import annotations

import ctypes
import os
from collections.abc import Mapping

# of mallopt(3), see glibc's malloc.h
M_TRIM_THRESHOLD, M_MMAP_MAX = -1, -4
NEVER = -1
OWN = ("MALLOC_TRIM_THRESHOLD_", "MALLOC_MMAP_MAX_", "MALLOC_MMAP_THRESHOLD_", "MALLOC_TOP_PAD_")


def keep_freed_memory(environ: Mapping[str, str] = os.environ) -> bool:
    """Lets this process keep the memory that it frees, for what it allocates next.

    A training step allocates and frees hundreds of megabytes of activations. By default glibc gives large blocks back
    to the operating system at once, and the next step gets them page by page, each filled with zeros by the kernel:
    on a CPU that was seen to take an eighth to a quarter of a step, see `scripts/benchmark.py memory`. The price is a
    peak that is higher by some hundred megabytes in a run. Who has set glibc's own variables keeps his settings.

    Args:
        environ: the environment's variables.

    Returns:
        Whether memory is kept from now on; false with another C library, whose allocator is left as it is.
    """
    if any(name in environ for name in OWN) or "glibc.malloc" in environ.get("GLIBC_TUNABLES", ""):
        return False
    try:
        libc = ctypes.CDLL("libc.so.6")
        libc.gnu_get_libc_version  # noqa: B018  others have a mallopt that takes other numbers
    except (OSError, AttributeError):
        return False
    return all(libc.mallopt(*setting) == 1 for setting in ((M_TRIM_THRESHOLD, NEVER), (M_MMAP_MAX, 0)))

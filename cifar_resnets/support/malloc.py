"""Makes glibc keep freed memory, which saves an eighth to a quarter of a training step on a CPU."""

import ctypes
import os
from collections.abc import Mapping

# parameters of mallopt(3), from glibc's malloc.h
M_TRIM_THRESHOLD, M_MMAP_MAX = -1, -4
NEVER = -1
OWN = ("MALLOC_TRIM_THRESHOLD_", "MALLOC_MMAP_MAX_", "MALLOC_MMAP_THRESHOLD_", "MALLOC_TOP_PAD_")


def keep_freed_memory(environ: Mapping[str, str] = os.environ) -> bool:
    """Makes this process keep the memory that it frees, for later allocations.

    A training step allocates and frees hundreds of megabytes of activations. By default glibc returns large blocks to
    the operating system at once, and the next step gets them back page by page, each zeroed by the kernel: on a CPU
    this takes an eighth to a quarter of a step, see `scripts/benchmark.py memory`. In exchange, the peak is higher by
    some hundred megabytes. If the user has set glibc's own variables, nothing is changed.

    Args:
        environ: the environment variables.

    Returns:
        Whether memory is kept from now on; false with another C library.
    """
    if any(name in environ for name in OWN) or "glibc.malloc" in environ.get("GLIBC_TUNABLES", ""):
        return False
    try:
        libc = ctypes.CDLL("libc.so.6")
        libc.gnu_get_libc_version  # noqa: B018  other C libraries have a mallopt with other parameters
    except (OSError, AttributeError):
        return False
    return all(libc.mallopt(*setting) == 1 for setting in ((M_TRIM_THRESHOLD, NEVER), (M_MMAP_MAX, 0)))

"""How much memory there is for this process."""

import contextlib
import os
from pathlib import Path

_MEMORY = Path("/proc/meminfo")
# of a container, by cgroups of version 2 and 1: its limit, and what is used of it
_CGROUPS = [("memory.max", "memory.current"), ("memory/memory.limit_in_bytes", "memory/memory.usage_in_bytes")]


def available_bytes(cgroups: Path = Path("/sys/fs/cgroup")) -> int:
    """Returns the memory that can be taken without swapping; in a container, what its limit leaves, if that is less."""
    there_is = [os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")]
    with contextlib.suppress(OSError, KeyError):  # not on Linux
        there_is.append(_values(_MEMORY)["MemAvailable:"] * 1024)
    for limit, used in _CGROUPS:
        with contextlib.suppress(OSError, ValueError):  # no limit is the word max
            # what was read of files, and is given back when memory is short, counts as used
            cached = _values((cgroups / used).with_name("memory.stat")).get("inactive_file", 0)
            there_is.append(int((cgroups / limit).read_text()) - int((cgroups / used).read_text()) + cached)
    return max(min(there_is), 0)


def _values(file: Path) -> dict[str, int]:
    """Reads a file of names and numbers, one of each a line."""
    return {(words := line.split())[0]: int(words[1]) for line in file.read_text().splitlines()}

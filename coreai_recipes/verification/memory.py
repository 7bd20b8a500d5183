"""How much memory a stage may take. A leaf."""

import os
import re
from pathlib import Path

GIGABYTE = 1e9


def machine_bytes() -> int:
    """All memory of this machine."""
    return os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")


def free_bytes() -> float:
    """What this process could still take without swapping, the limit of its container included."""
    return min(_system_free_bytes(), _container_free_bytes())


def fits(needed_bytes: int) -> bool:
    """Whether a whole model may be held: when it takes no more than a third of the free memory."""
    return needed_bytes <= free_bytes() / 3


def needs(needed_bytes: int) -> str:
    """The end of a sentence about something that does not fit."""
    return (
        f"needs {3 * needed_bytes / GIGABYTE:.1f} GB of free memory, three times the float32 model's "
        f"{needed_bytes / GIGABYTE:.1f} GB; {free_bytes() / GIGABYTE:.1f} GB are free"
    )


def _system_free_bytes() -> int:
    meminfo = Path("/proc/meminfo")
    if meminfo.exists():
        match = re.search(r"^MemAvailable:\s+(\d+) kB", meminfo.read_text(), re.MULTILINE)
        if match:
            return int(match[1]) << 10
    # macOS does not say what is available without asking the kernel in C: half of what there is
    return machine_bytes() // 2


def _container_free_bytes() -> float:
    folder = Path("/sys/fs/cgroup")
    try:
        limit, used = ((folder / name).read_text().strip() for name in ("memory.max", "memory.current"))
        return float("inf") if limit == "max" else max(0, int(limit) - int(used))
    except (OSError, ValueError):
        return float("inf")

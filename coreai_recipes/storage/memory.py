"""What a process holds of the machine's memory beyond what it uses."""

import ctypes
from contextlib import suppress


def return_freed_memory() -> None:
    """Let the system have what was freed: glibc keeps a heap for each thread, and of a heap all below its highest block
    in use. Of passes of thirty layers that is twice what is in use, of a linked program a tenth.
    """
    with suppress(OSError, AttributeError):
        ctypes.CDLL(None).malloc_trim(0)

"""What is to be made of an exception of an engine or a library. Standard library."""

from __future__ import annotations


def in_words(fault: BaseException) -> str:
    """Return the kind of a fault and the first line of what it says."""
    return f"{type(fault).__name__}: {next(iter(str(fault).strip().splitlines()), '')}"


def out_of_memory(fault: BaseException) -> bool:
    """Return whether a device or the host had no memory left; torch says so in words."""
    return isinstance(fault, MemoryError) or any(
        words in str(fault) for words in ("out of memory", "can't allocate memory")
    )

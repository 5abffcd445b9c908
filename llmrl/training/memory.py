"""Memory that does not suffice for a micro-batch: smaller ones, whose gradients add up to the same."""

from __future__ import annotations

PHRASES = ("not enough memory", "can't allocate memory", "out of memory")


def out_of_memory(error: Exception) -> bool:
    """Whether torch had no room, on any device: not every back end has a kind of error for it."""
    if isinstance(error, MemoryError) or type(error).__name__ == "OutOfMemoryError":
        return True
    return isinstance(error, RuntimeError) and any(phrase in str(error).lower() for phrase in PHRASES)

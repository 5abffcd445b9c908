"""The pool of processes that scorers run in."""

from llmrl.pool.pool import Pool

__all__ = ["Pool"]

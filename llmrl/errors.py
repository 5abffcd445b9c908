"""What can go wrong, by who has to act. Every message says what was found, what was expected and the next move."""

from __future__ import annotations

import difflib
from collections.abc import Iterable

from llmrl.redaction import redact

MOST = 50  # problems that one error tells of


class LlmrlError(Exception):
    """Any error that llmrl raises on purpose, without secrets. The command line prints it without a traceback."""

    def __init__(self, message: str):
        super().__init__(redact(message))


class RecipeError(LlmrlError):
    """The recipe or an override is wrong. `problems` holds what was found, one line each; MOST at most."""

    def __init__(self, problems: str | Iterable[str]):
        found = [problems] if isinstance(problems, str) else list(problems)
        left = [f"… and {len(found) - MOST:,} more of the kind."] if len(found) > MOST else []
        self.problems = redact(found[:MOST] + left)
        super().__init__("\n".join(self.problems))


class CatalogError(LlmrlError):
    """A name that no table holds, or a table that cannot be read."""


class DataError(LlmrlError):
    """Rows that cannot be read, or that have no usable prompt."""


class ModelError(LlmrlError):
    """A model that cannot be loaded or does not support what the recipe asks for."""


class RolloutError(LlmrlError):
    """An engine returned something else than what was asked for."""


class ScoringError(LlmrlError):
    """Scorers failed in a way the recipe does not tolerate."""


class TrainingError(LlmrlError):
    """The update cannot go on: numbers out of range, ranks that disagree."""


class CheckpointError(LlmrlError):
    """No checkpoint can be resumed from, or one does not belong to this recipe."""


def nearest(word: str, known: Iterable[str]) -> str:
    """' Did you mean X?' when a known word is close to `word`, else an empty string."""
    close = difflib.get_close_matches(str(word), [str(k) for k in known], n=5, cutoff=0.6)
    swapped = [k for k in close if sorted(k) == sorted(str(word))]  # two letters in the wrong order
    return f" Did you mean {(swapped or close)[0]}?" if close else ""

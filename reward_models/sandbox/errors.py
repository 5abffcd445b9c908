"""What can go wrong with a sandbox, and with what runs in it."""

from __future__ import annotations

from llmrl.errors import LlmrlError


class SandboxError(LlmrlError):
    """No sandbox can be had here, or one was asked for something that it cannot do."""


class InfrastructureError(SandboxError):
    """The sandbox failed, not the code in it: never a verdict."""


class Fault(Exception):
    """The code in the sandbox failed: it ended, or answered something else than plain data."""


class Late(Fault):
    """The code in the sandbox did not come to an end in time."""

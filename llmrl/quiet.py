"""Notices of other libraries that say nothing to a user of llmrl."""

from __future__ import annotations

import logging
import os


def quiet_libraries() -> None:
    """No bar for each file of weights read or written, no word on DeepSpeed finding a CPU or on a profiler's start."""
    os.environ.setdefault("KINETO_LOG_LEVEL", "99")
    logging.getLogger("DeepSpeed").addFilter(lambda record: "Setting accelerator to CPU" not in record.getMessage())
    from transformers.utils import logging as transformers_logging

    transformers_logging.disable_progress_bar()

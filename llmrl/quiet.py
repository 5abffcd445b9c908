"""Notices of other libraries that say nothing to a user of llmrl."""

from __future__ import annotations

import logging


def quiet_libraries() -> None:
    """No bar for each file of weights read or written, and no word on DeepSpeed finding a CPU."""
    logging.getLogger("DeepSpeed").addFilter(lambda record: "Setting accelerator to CPU" not in record.getMessage())
    from transformers.utils import logging as transformers_logging

    transformers_logging.disable_progress_bar()

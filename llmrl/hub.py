"""The Hugging Face hub: asked once whether it answers at all, for every file that is missed costs half a minute of retries."""

from __future__ import annotations

import functools
import os
import re
import sys
import warnings

SECONDS = 5  # until a connection that hangs counts as none
HUB_ID = re.compile(r"\w[\w.-]*(/\w[\w.-]*)?")


@functools.cache
def silence() -> str | None:
    """Why the hub does not answer, None where it does. Then this process and those it starts use what is stored here."""
    from huggingface_hub import constants

    if constants.HF_HUB_OFFLINE:
        return "HF_HUB_OFFLINE is set"
    import httpx

    try:
        httpx.head(constants.ENDPOINT, timeout=SECONDS)
    except httpx.HTTPError as error:
        os.environ["HF_HUB_OFFLINE"] = "1"
        constants.HF_HUB_OFFLINE = True
        if "datasets" in sys.modules:  # it has read the constant already
            sys.modules["datasets"].config.HF_HUB_OFFLINE = True
        return f"{constants.ENDPOINT} does not answer ({str(error) or type(error).__name__})"
    return None


def missing(repo: str, revision: str | None = None) -> str | None:
    """Why a model cannot be had: the hub does not answer, and nothing of the model is stored here. None: it may be."""
    if not HUB_ID.fullmatch(repo) or not (why := silence()):
        return None
    from huggingface_hub import constants, try_to_load_from_cache

    names = ("config.json", "adapter_config.json")
    if any(isinstance(try_to_load_from_cache(repo, name, revision=revision), str) for name in names):
        warnings.warn(f"{why}; {repo} is taken from {constants.HF_HUB_CACHE}", stacklevel=2)
        return None
    return f"{why}; nothing of {repo} is stored in {constants.HF_HUB_CACHE}"

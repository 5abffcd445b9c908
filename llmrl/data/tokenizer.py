"""Loading a tokenizer whose chat template, a program out of the model's folder, was tried where it can do no harm."""

from __future__ import annotations

import os
import resource
import signal
import warnings
from typing import Any

from llmrl.errors import ModelError

SECONDS, MEGABYTES, CHARACTERS = 5, 256, 1 << 16  # what writing two short turns may take and give
HEADROOM = 8  # times MEGABYTES, beyond which the system gives the process that tries a template nothing more


def load_tokenizer(path: str) -> Any:
    """The tokenizer of a folder or hub id; no code of its own runs. ModelError for a template that runs away."""
    from transformers import AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(path, trust_remote_code=False)
    if len(tokenizer.get_vocab()) <= len(tokenizer.added_tokens_decoder):  # what transformers makes of a missing file
        raise ModelError(
            f"{path}: its tokenizer has no tokens but special ones. Expected a folder with config.json, safetensors and "
            "tokenizer.json; copy the tokenizer's files into it."
        )
    check_template(tokenizer, path)
    return tokenizer


def check_template(tokenizer: Any, path: str) -> None:
    """Have a forked process write a short conversation. ModelError where that fails or takes more than the limits above.

    transformers' sandbox keeps a template from files and Python's insides, not from endless loops or 9 ** 9 ** 9, which
    no handler in this process could stop.
    """
    if tokenizer.chat_template is None:
        return
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)  # of forking beside threads: the child touches none of them
        child = os.fork()
    if child == 0:
        try:
            os._exit(0 if _fits(tokenizer) else 1)
        finally:
            os._exit(1)
    _, status = os.waitpid(child, 0)
    if status:
        how = "took too long" if os.WIFSIGNALED(status) else "took too much memory, wrote too much or raised"
        raise ModelError(
            f"{path}: the chat template {how} for two short turns; the limits are {SECONDS} s, {MEGABYTES} MB and "
            f"{CHARACTERS:,} characters. Replace chat_template in the tokenizer's folder, or use another model."
        )


def _fits(tokenizer: Any) -> bool:
    """Whether a user's turn, or that and an answer, can be written within the limits, which are this process's own."""
    signal.signal(signal.SIGXCPU, signal.SIG_DFL)
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    with open("/proc/self/statm") as file:
        held = int(file.read().split()[5]) * resource.getpagesize()
    room = held + (HEADROOM * MEGABYTES << 20)
    for kind, most in ((resource.RLIMIT_CPU, SECONDS), (resource.RLIMIT_DATA, room)):
        _, hard = resource.getrlimit(kind)
        resource.setrlimit(kind, (most if hard < 0 else min(most, hard), hard))
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    turns, lengths = [{"role": "user", "content": "a"}, {"role": "assistant", "content": "b"}], []
    for end in (1, 2):
        try:
            text = tokenizer.apply_chat_template(turns[:end], tokenize=False, add_generation_prompt=end == 1)
        except Exception:  # noqa: BLE001 - a template raises what it likes, such as for a conversation without an answer
            continue
        lengths.append(len(text))
    # jinja swallows a MemoryError of what it computes ahead, so what was held tells
    taken = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before
    return bool(lengths) and max(lengths) <= CHARACTERS and taken <= MEGABYTES << 10

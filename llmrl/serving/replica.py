"""`python -m llmrl.serving.replica <vLLM's own options>`: vLLM's OpenAI server, which ends with whoever started it."""

from __future__ import annotations

import os
import runpy
import signal
import sys
import threading
import time

GRACE = 5.0  # seconds; one that is killed leaves its shared memory behind


def end_with_parent() -> None:
    """End this process and its children once the other end of standard input is closed, however that came to be."""

    def watch() -> None:
        while os.read(0, 1):
            pass
        os.killpg(0, signal.SIGTERM)
        time.sleep(GRACE)
        os.killpg(0, signal.SIGKILL)

    threading.Thread(target=watch, daemon=True).start()


if __name__ == "__main__":
    end_with_parent()
    sys.argv[0] = "vllm"
    runpy.run_module("vllm.entrypoints.openai.api_server", run_name="__main__")

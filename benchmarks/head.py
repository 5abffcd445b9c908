"""The output layer alone: CPU-seconds and memory of log-probabilities of N tokens and their gradients, by several ways.

    python benchmarks/head.py              # about five CPU-minutes; --write puts the result into docs/benchmarks.md

Forward and backward to states [N,H] and matrix [V,H] in fp32, without entropy. Each cell is a process of its own: the
median of three passes after the first, and the highest resident memory of the first, less what was there before it.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from statistics import median
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))
from benchmarks.memory import Watch
from benchmarks.report import machine, section, table

SIZES = ((1300, 8192, 256), (2048, 32768, 256), (16384, 8192, 256), (512, 151936, 896))  # N, V, H
PASSES = 3
Way = Callable[[Any, Any, Any], Any]  # states, linear layer, labels -> log-probabilities


def ours(states: Any, linear: Any, labels: Any) -> Any:
    from llmrl.ops.projected import Projection

    return statistics(states, Projection(linear.weight), labels)


def any_head(states: Any, linear: Any, labels: Any) -> Any:
    return statistics(states, linear, labels)


def statistics(states: Any, head: Any, labels: Any) -> Any:
    from llmrl.ops.logprobs import token_statistics

    return token_statistics(states, head, labels, states.new_ones(len(labels)), len(head.weight), False)[0]


def torch_whole(states: Any, linear: Any, labels: Any) -> Any:
    from torch.nn.functional import cross_entropy

    return -cross_entropy(linear(states), labels, reduction="none")


def trl_kernel(states: Any, linear: Any, labels: Any) -> Any:
    from trl.kernels.chunked_logprob import ChunkedLogProbFunction

    words = min(32768, len(linear.weight))
    return ChunkedLogProbFunction.apply(states, linear.weight, None, labels, 1.0, words, None, 1.0, ())[0]


WAYS: dict[str, Way] = {
    "llmrl, a matrix": ours,
    "llmrl, any other head": any_head,
    "torch, all logits at once": torch_whole,
    "TRL's chunks": trl_kernel,
}


def measure(way: str, size: tuple[int, int, int]) -> dict[str, float]:
    """What one process does."""
    import torch

    torch.set_num_threads(1)
    count, words, width = size
    torch.manual_seed(0)
    linear, states = torch.nn.Linear(width, words, bias=False), torch.randn(count, width).requires_grad_()
    labels, watch, seconds = torch.randint(words, (count,)), Watch(), []
    WAYS[way](states[:2], linear, labels[:2]).sum().backward()  # imports, and a gradient to add to
    watch.begin()
    for turn in range(1 + PASSES):
        start = time.process_time()
        WAYS[way](states, linear, labels).sum().backward()
        seconds.append(time.process_time() - start)
        if not turn:
            peak = watch.end()["peak"]
    return {"peak": peak, "seconds": median(seconds[1:])}


def in_process(way: str, size: tuple[int, int, int]) -> dict[str, float]:
    """What a process of this file prints, read as JSON. SystemExit when it fails."""
    environment = dict(os.environ) | {"OMP_NUM_THREADS": "1"}
    command = [sys.executable, __file__, "--way", way, "--size", *map(str, size)]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, check=False)
    if done.returncode:
        raise SystemExit(f"{way}, {size}: status {done.returncode}:\n{done.stderr[-2000:]}")
    return json.loads(done.stdout.splitlines()[-1])


def compare(write: bool) -> None:
    """Print the table; with `write` also into the page."""
    rows = []
    for way in WAYS:
        found = [in_process(way, size) for size in SIZES]
        rows.append([way, *(f"{f['seconds']:.2f} s, {f['peak']:,.0f} MiB" for f in found)])
    text = table(["forward and backward", *(f"{n:,} × {v:,}, H {h}" for n, v, h in SIZES)], rows)
    print(f"{machine()}\n\n{text}")
    if write:
        section("head", f"{text}\n\nTokens × words. {machine()}.")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--write", action="store_true", help="write the section, too")
    parser.add_argument("--way", choices=WAYS, help=argparse.SUPPRESS)
    parser.add_argument("--size", type=int, nargs=3, help=argparse.SUPPRESS)
    given = parser.parse_args()
    if given.way is None:
        compare(given.write)
    else:
        print(json.dumps(measure(given.way, tuple(given.size))))


if __name__ == "__main__":
    main()

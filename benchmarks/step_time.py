"""How long a step takes, from sizes and speeds: plain functions, and what this machine's own numbers make of them.

python benchmarks/step_time.py            # one thread, CPU-seconds; predicted and measured, side by side
python benchmarks/step_time.py --show     # the layouts of docs/scaling.md, from data-sheet speeds; nothing is measured
"""

from __future__ import annotations

import argparse
import math
import statistics
import tempfile
import time
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path


@dataclass(frozen=True)
class Sizes:
    """A decoder. weights: parameters of all matrices, the output layer's once. width: kv_heads × head size."""

    weights: float
    layers: int
    width: int
    bytes_each: float  # 2 in bf16, 4 in fp32


@dataclass(frozen=True)
class Work:
    """A step: answers to prompts. passes: forward passes beside the update, such as the reference's."""

    prompts: int
    group: int
    prompt_tokens: int
    answer_tokens: float
    longest_answer: int
    passes: int = 0

    @property
    def answers(self) -> int:
        return self.prompts * self.group


@dataclass(frozen=True)
class Device:
    """flops: multiply-adds count as two, as reached by large products. memory: bytes/s. pause: seconds a layer and token
    of decoding that are neither arithmetic nor memory."""

    flops: float
    memory: float
    pause: float = 0.0


def decode_seconds(sizes: Sizes, work: Work, device: Device, servers: int = 1) -> float:
    """Prompts read once each, then a forward a token until the longest answer has ended, rows leaving as theirs does.

    A forward costs its arithmetic or its reading (all weights once, keys and values of every row), whichever is longer.
    """
    prompts, answers = math.ceil(work.prompts / servers), work.answers / servers
    prefill = 2 * sizes.weights * prompts * work.prompt_tokens / device.flops
    rows = answers * work.answer_tokens / work.longest_answer  # on average over the forwards
    cache = 2 * sizes.layers * sizes.width * sizes.bytes_each * (work.prompt_tokens + work.answer_tokens / 2)
    reading = (sizes.weights * sizes.bytes_each + rows * cache) / device.memory
    arithmetic = 2 * sizes.weights * rows / device.flops
    return prefill + work.longest_answer * (max(reading, arithmetic) + sizes.layers * device.pause)


def train_seconds(sizes: Sizes, work: Work, device: Device, devices: int = 1) -> float:
    """Forward and backward over all answers and each prompt once, the other passes, and the optimizer's reading.

    AdamW in fp32 reads weight, gradient and two moments and writes three of them: 28 bytes a parameter.
    """
    tokens = work.answers * work.answer_tokens + work.prompts * work.prompt_tokens
    arithmetic = (6 + 2 * work.passes) * sizes.weights * tokens / device.flops
    return (arithmetic + 28 * sizes.weights / device.memory) / devices


def sync_seconds(sizes: Sizes, links: list[float]) -> float:
    """All weights over each of the links one after the other, bytes/s: writing a file, the network, reading it."""
    return sum(sizes.weights * sizes.bytes_each / link for link in links)


def step_seconds(generate: float, train: float, sync: float, score: float = 0.0, ahead: bool = False) -> float:
    """ahead: the next rollouts are written while this step trains, by the weights of the step before."""
    return (max(generate + score, train) if ahead else generate + score + train) + sync


def layouts() -> list[tuple[str, float, float, float, float]]:
    """(name, generate, train, sync, step) of 7.6 G parameters in bf16, 128 prompts × 8 answers of 1,000 tokens on average
    and 4,000 at most; from 0.4 of an H100's data-sheet arithmetic and 0.6 of its memory speed. Nothing of it is measured."""
    sizes, work = Sizes(7.6e9, 28, 512, 2), Work(128, 8, 300, 1000, 4000, passes=1)
    device = Device(flops=0.4 * 989e12, memory=0.6 * 3.35e12, pause=5e-6)
    memory, network = 20e9, 5e9  # shared memory or PCIe; a file system that nodes share

    def row(name: str, servers: int, trainers: int, links: list[float], ahead: bool = False):
        parts = decode_seconds(sizes, work, device, servers), train_seconds(sizes, work, device, trainers)
        sync = sync_seconds(sizes, links)
        return (name, *parts, sync, step_seconds(*parts, sync, ahead=ahead))

    return [
        row("8 GPUs, engine in each process", 8, 8, [memory]),
        row("8 train + 8 serve, one after the other", 8, 8, [network, network]),
        row("8 train + 8 serve, one step ahead (not built)", 8, 8, [network, network], ahead=True),
    ]


def cpu_seconds(work: Callable[[], object], times: int = 5) -> float:
    """Median CPU-seconds of this process."""
    found = []
    for _ in range(times + 1):
        began = time.process_time()
        work()
        found.append(time.process_time() - began)
    return statistics.median(found[1:])


def measured() -> None:
    """Print prediction and measurement of a model of 3 M parameters on this machine, one thread."""
    import torch

    from llmrl.config import Model
    from llmrl.data.render import stop_ids
    from llmrl.policy.forward import Rows
    from llmrl.policy.load import load_policy
    from llmrl.policy.tiny import tiny
    from llmrl.rollout.engine import Context
    from llmrl.rollout.transformers import TransformersEngine
    from llmrl.serving.weights import write_weights
    from llmrl.types import Prompt, Sampling

    torch.set_num_threads(1)
    left, right = torch.randn(2048, 256), torch.randn(256, 1024)
    flops = 2 * 2048 * 256 * 1024 / cpu_seconds(lambda: left @ right, 20)
    block = torch.ones(1 << 24)
    memory = 2 * 4 * block.numel() / cpu_seconds(lambda: block.clone(), 10)
    with tempfile.TemporaryDirectory() as folder:
        tiny(f"{folder}/model", hidden=256, layers=4, heads=4, kv_heads=2, feed_forward=768)
        policy = load_policy(Model.model_validate({"path": f"{folder}/model"}), Path(folder), seed=0)
        weights = sum(w.numel() for _, w in policy.named_weights() if w.dim() > 1) - 128 * 256  # one of the tied two
        sizes = Sizes(weights, 4, 128, 4)
        work = Work(8, 8, 64, 48, 48)
        engine = TransformersEngine(Context(policy, policy.tokenizer, stop_ids(policy.tokenizer), 64, 48))

        def generate(work: Work) -> None:
            prompts = [Prompt(str(i), ids=tuple(range(20 + i, 84 + i))) for i in range(work.prompts)]
            engine.generate(prompts, Sampling(work.longest_answer), work.group, list(range(work.prompts)))

        def train() -> None:
            contexts = [[20 + prompt] * 64 for prompt in range(8) for _ in range(8)]
            rows = Rows(contexts, [[21] * 48] * 64, [[True] * 48] * 64, [1.0] * 64)
            policy.statistics(rows, 48)["logprobs"].sum().backward()

        alone = replace(work, prompts=1, group=1)
        bare = decode_seconds(sizes, alone, Device(flops, memory))
        pause = max(0.0, cpu_seconds(lambda: generate(alone)) - bare) / (alone.longest_answer * sizes.layers)
        device = Device(flops, memory, pause)
        print(
            f"{weights / 1e6:.2f} M parameters; {flops / 1e9:.0f} GFLOP/s, {memory / 1e9:.1f} GB/s, pause {pause * 1e6:.0f} µs"
        )
        path = Path(folder) / "w.safetensors"
        pairs = {
            "generate": (decode_seconds(sizes, work, device), cpu_seconds(lambda: generate(work), 3)),
            "forward and backward": (
                train_seconds(sizes, work, replace(device, memory=math.inf)),
                cpu_seconds(train, 3),
            ),
            "write weights": (
                sync_seconds(sizes, [memory, memory]),
                cpu_seconds(lambda: write_weights(policy.named_weights(), path, "1", torch.float32)),
            ),
        }
        for name, (expected, found) in pairs.items():
            print(f"{name:<22} predicted {expected:8.4f} s   measured {found:8.4f} s   ratio {found / expected:5.2f}")


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--show", action="store_true", help="layouts from data-sheet speeds")
    if parser.parse_args().show:
        for name, *seconds in layouts():
            print(f"{name:<48}" + "".join(f"{s:9.1f}" for s in seconds))
    else:
        measured()

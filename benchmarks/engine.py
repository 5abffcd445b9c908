"""What llmrl's vLLM engine adds to vLLM: tokens per CPU-second beside `LLM.generate`, and the parts of a sync of weights.

    python benchmarks/engine.py            # three minutes; --write puts the tables into docs/benchmarks.md

One process and one thread; the sides take turns with other seeds each round, CPU-seconds by `time.process_time`.
"""

from __future__ import annotations

import argparse
import os
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from statistics import median
from typing import Any

os.environ |= {"OMP_NUM_THREADS": "1", "HF_HUB_OFFLINE": "1"}
sys.path.insert(0, str(Path(__file__).resolve().parents[1]))
from benchmarks.report import machine, section, spread, table
from benchmarks.shapes import SHAPES, Shape, make_model, make_prompts
from benchmarks.trainers import llmrl_loop, scorers_time

OURS, SAME, PLAIN, BARE = "`VllmEngine.generate`", "`LLM.generate`, our draws", "`LLM.generate`", "`LLM.generate`, bare"
ADAPTERS = {"rank": 8, "targets": ["q_proj", "v_proj"]}
TEXT = """## The vLLM engine beside vLLM

    python benchmarks/engine.py --shape {shape}

{machine}; vLLM runs in the trainer's process. {counts}

{speeds}

All sides have the same prompts, limits and stop tokens, one request of n answers a prompt. *Our draws*: the same
requests through vLLM's own front, so the same tokens as ours; what is left between the two is the work of our engine.
Without it, vLLM's sampler with seeds and log-probabilities; *bare*: with neither.

A GRPO step with this engine:

{parts}

A sync of weights, its probe included:

{syncs}
"""
PARTS = ("generate", "score", "passes", "update", "sync")


def seconds(work: Callable[[], Any]) -> tuple[float, Any]:
    """(CPU-seconds, what it returned)."""
    start = time.process_time()
    found = work()
    return time.process_time() - start, found


class Bench:
    """An engine, the policy that it samples from, and the ways to ask it for the answers of step `number`."""

    def __init__(self, shape: Shape, policy: Any, engine: Any, prompts: Sequence[Any]):
        self.shape, self.policy, self.engine, self.prompts = shape, policy, engine, prompts
        self.sampler = engine.llm.llm_engine.model_executor.driver_worker.model_runner.sampler.topk_topp_sampler

    def share(self, number: int) -> Sequence[Any]:
        start = number * self.shape.prompts_per_step % len(self.prompts)
        return self.prompts[start : start + self.shape.prompts_per_step]

    def seeds(self, number: int) -> Sequence[int]:
        return range(1000 * number, 1000 * number + self.shape.prompts_per_step)

    def ours(self, number: int) -> list[list[Any]]:
        from llmrl.types import Sampling

        how, size = Sampling(self.shape.max_tokens), self.shape.group_size
        return self.engine.generate(self.share(number), how, size, self.seeds(number))

    def plain(self, number: int, **changed: Any) -> list[list[Any]]:
        """The same requests by vLLM's own front, but for what `changed` says of its SamplingParams."""
        from vllm import SamplingParams

        same = {"n": self.shape.group_size, "max_tokens": self.shape.max_tokens, "ignore_eos": True, "logprobs": 0,
                "stop_token_ids": list(self.engine.context.stop_ids), "flat_logprobs": True, "detokenize": False}  # fmt: skip
        prompts = self.share(number)
        params = [SamplingParams(**same | {"seed": i * self.shape.group_size} | changed) for i in range(len(prompts))]
        inputs = [{"prompt_token_ids": list(prompt.ids)} for prompt in prompts]
        return [output.outputs for output in self.engine.llm.generate(inputs, params, use_tqdm=False)]

    def with_our_draws(self, number: int) -> list[list[Any]]:
        from llmrl.rollout.draw import uniforms

        self.engine.draws.begin(uniforms(self.seeds(number), self.shape.group_size, self.shape.max_tokens))
        return self.plain(number)

    def with_vllms_draws(self, number: int, **changed: Any) -> list[list[Any]]:
        own, self.sampler.forward = self.sampler.forward, self.sampler.forward_cpu
        try:
            return self.plain(number, **changed)
        finally:
            self.sampler.forward = own

    def sync(self) -> dict[str, float]:
        """CPU-milliseconds of the parts of a sync, timed inside of `VllmEngine.sync`."""
        from llmrl.rollout import vllm as module

        engine, spent = self.engine, {}

        def timed(name: str, function: Callable) -> Callable:
            def call(*args: Any) -> Any:
                spent[name], found = seconds(lambda: function(*args))
                return found

            return call

        load, reset, probe = module.load_in_place, engine.llm.reset_prefix_cache, engine._probe
        module.load_in_place = timed("weights", load)
        engine.llm.reset_prefix_cache, engine._probe = timed("prefix cache", reset), timed("probe", probe)
        try:
            spent["whole"], _ = seconds(lambda: engine.sync(self.policy, engine.version + 1))
        finally:
            module.load_in_place, engine.llm.reset_prefix_cache = load, reset
            del engine._probe
        return {name: 1000 * value for name, value in spent.items()}


def generation(bench: Bench, rounds: int) -> str:
    """A table of tokens per CPU-second, and what each side is of `LLM.generate`."""
    sides = {OURS: bench.ours, SAME: bench.with_our_draws, PLAIN: bench.with_vllms_draws,
             BARE: lambda number: bench.with_vllms_draws(number, logprobs=None, seed=None)}  # fmt: skip
    speeds: dict[str, list[float]] = {side: [] for side in sides}
    for number in range(rounds + 1):
        for side in list(sides) if number % 2 else list(sides)[::-1]:
            spent, groups = seconds(lambda side=side, number=number: sides[side](number))
            tokens = sum(len(a.ids if side == OURS else a.token_ids) for group in groups for a in group)
            speeds[side].append(tokens / spent)
    speeds = {side: found[1:] for side, found in speeds.items()}  # the first round warms up
    rows = []
    for side, found in speeds.items():
        ratios = [[a / b for a, b in zip(found, speeds[other], strict=True)] for other in (SAME, PLAIN)]
        rows.append([side, spread(found, 0), *(spread(ratio, 2) for ratio in ratios)])
    return table(["side", "tokens per CPU-second", f"over {SAME}", f"over {PLAIN}"], rows)


def steps_of(loop: Any, steps: int) -> tuple[str, float]:
    """A table of the CPU-seconds of each part of a step, and the median of the whole."""
    own, time.perf_counter = time.perf_counter, time.process_time  # the loop's own clock, in CPU-seconds
    found = []
    for number in range(steps + 2):
        start = time.process_time() + scorers_time(loop.stage.pool)
        parts = loop.step(number).seconds
        found.append(parts | {"whole": time.process_time() + scorers_time(loop.stage.pool) - start})
    time.perf_counter = own
    rows = [[part, spread([one.get(part, 0.0) for one in found[2:]])] for part in (*PARTS, "whole")]
    return table(["part of a step", "CPU-seconds"], rows), median(one["whole"] for one in found[2:])


def synchronisation(name: str, bench: Bench, step: float, rounds: int) -> list[str]:
    """CPU-milliseconds of a sync by part, and shares of `step` CPU-seconds, without its probe and with: a row of the table."""
    found = [bench.sync() for _ in range(rounds + 2)][2:]
    parts = [spread([one[part] for one in found], 1) for part in ("weights", "prefix cache", "probe", "whole")]
    shares = [[(one["whole"] - less * one["probe"]) / step / 10 for one in found] for less in (1, 0)]
    return [name, *parts, *(spread(share, 1) for share in shares)]


def adapted(shape: Shape, folder: Path, prompts: Sequence[Any]) -> Bench:
    """The same model with adapters, in an engine of its own."""
    from llmrl.config import Model
    from llmrl.policy.load import load_policy
    from llmrl.run import make_engine

    policy = load_policy(Model.model_validate({"path": str(folder / "model"), "lora": ADAPTERS}), folder, seed=0)
    return Bench(shape, policy, make_engine("vllm", policy, (shape.longest_prompt, shape.max_tokens)), prompts)


def measure(name: str, rounds: int, folder: Path) -> str:
    """The whole section."""
    import torch
    from transformers import AutoTokenizer

    torch.set_num_threads(1)
    shape = SHAPES[name]
    make_model(shape, folder / "model")
    make_prompts(shape, 32, folder / "prompts.jsonl", AutoTokenizer.from_pretrained(folder / "model"))
    loop = llmrl_loop(shape, folder, 0, "vllm")
    parts, step = steps_of(loop, rounds)
    stage = loop.stage
    bench = Bench(shape, stage.updater.policy, stage.engine, stage.prompts.prompts)
    speeds = generation(bench, 3 * rounds)  # single rounds scatter more than what is to be seen
    rows = [synchronisation("all weights trained", bench, step, rounds)]
    stage.close()
    stage.pool.close()
    bench = adapted(shape, folder, bench.prompts)
    rows.append(synchronisation(f"adapters on {' and '.join(ADAPTERS['targets'])}", bench, step, rounds))
    bench.engine.close()
    syncs = table(
        [
            "policy",
            "weights, ms",
            "prefix cache",
            "probe",
            "whole",
            "% of the step above, without the probe",
            "with it",
        ],
        rows,
    )
    counts = f"{3 * rounds} rounds of the first table, {rounds} of the others; medians with the range."
    return TEXT.format(shape=name, machine=machine(), counts=counts, speeds=speeds, parts=parts, syncs=syncs)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--shape", choices=SHAPES, default="A")
    parser.add_argument("--rounds", type=int, default=8)
    parser.add_argument("--write", action="store_true", help="put the tables into docs/benchmarks.md")
    asked = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        text = measure(asked.shape, asked.rounds, Path(folder))
    print(text)
    if asked.write:
        section("engine", text)


if __name__ == "__main__":
    main()

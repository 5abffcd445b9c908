"""CPU-seconds of a GRPO step: llmrl's transformers engine beside TRL's GRPOTrainer, on one thread.

    python benchmarks/vs_trl.py --shape A

Same model file, prompts in the same order, number of completions, limits, reward and loss. Each side measures in
processes of its own, taken in turns, with `time.process_time`, which other programs on the machine disturb far less than
a wall clock. The two gradients of one batch are compared first: unequal work would make the rest worthless.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import random
import subprocess
import sys
import tempfile
import time
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path
from statistics import median
from typing import Any

SIDES = ("llmrl", "TRL, defaults", "TRL, tuned")
EXACT = {"bf16": False, "gradient_checkpointing": False}  # what TRL is set to for the comparison of gradients
PARTS = ("step", "generate", "train", "rest")
WARM_UP = 2
LEARNING_RATE = 1e-6  # too small to move the lengths within a measurement
GRADIENT_TOLERANCE = 1e-4  # of the largest component


@dataclass(frozen=True)
class Shape:
    """A model and a step. mean_length: what the end token's probability is set for; longest_prompt: in tokens.

    tuned: the fastest GRPOConfig options of those tried; docs/benchmarks.md says which.
    """

    model: dict[str, Any]
    prompts_per_step: int
    group_size: int
    longest_prompt: int
    max_tokens: int
    mean_length: float
    tuned: dict[str, Any]

    @property
    def completions(self) -> int:
        return self.prompts_per_step * self.group_size


SHAPES = {
    "A": Shape(
        model={"hidden": 256, "layers": 4, "feed_forward": 1024, "vocabulary": "bytes",
               "added": [f"<w{i}>" for i in range(7929)]},
        prompts_per_step=4, group_size=8, longest_prompt=64, max_tokens=128, mean_length=41.0,
        tuned={"bf16": True, "gradient_checkpointing": False, "per_device_train_batch_size": 32},
    ),
    "demo": Shape(
        model={}, prompts_per_step=16, group_size=8, longest_prompt=24, max_tokens=56, mean_length=18.4,
        tuned={"bf16": False, "gradient_checkpointing": False, "per_device_train_batch_size": 128},
    ),
}  # fmt: skip


def even_share(completion_ids: list[list[int]], **_: Any) -> list[float]:
    """The reward of both sides: the share of even token ids, which hardly ever is equal within a group."""
    return [sum(i % 2 == 0 for i in ids) / len(ids) for ids in completion_ids]


def make_model(shape: Shape, folder: Path) -> None:
    """Write a random model that ends an answer with the same probability everywhere, as a geometric law.

    Input embeddings share one large coordinate, which the end token's output row reads. That row is fitted until the
    truncated mean length comes out.
    """
    import torch
    from transformers import AutoModelForCausalLM

    from llmrl.policy.tiny import tiny

    tiny(str(folder), **shape.model)
    model = AutoModelForCausalLM.from_pretrained(folder)
    weight, end = model.get_input_embeddings().weight.data, model.config.eos_token_id
    weight[:, 0] = 0.5
    ids = torch.randint(10, 100, (32, shape.longest_prompt), generator=torch.Generator().manual_seed(0))

    def length(strength: float) -> float:
        weight[end, 0] = strength
        with torch.no_grad():
            p = model(ids).logits.softmax(-1)[..., end].mean().item()
        return (1 - (1 - p) ** shape.max_tokens) / p

    low, high = 0.0, 10.0
    for _ in range(30):
        middle = (low + high) / 2
        low, high = (middle, high) if length(middle) > shape.mean_length else (low, middle)
    model.save_pretrained(folder)


def make_prompts(shape: Shape, steps: int, file: Path, tokenizer: Any) -> None:
    """Write one chat prompt a line, of between half of and all of `shape.longest_prompt` tokens."""
    rng = random.Random(0)
    frame = len(
        tokenizer.apply_chat_template([{"role": "user", "content": ""}], add_generation_prompt=True)["input_ids"]
    )
    with file.open("w") as out:
        for _ in range(steps * shape.prompts_per_step):
            length = rng.randint(shape.longest_prompt // 2, shape.longest_prompt)
            content = "".join(rng.choice("0123456789+-") for _ in range(length - frame))
            out.write(json.dumps({"prompt": [{"role": "user", "content": content}]}) + "\n")


def llmrl_loop(shape: Shape, folder: Path, seed: int) -> Any:
    """A llmrl Loop over the prompts in `folder`."""
    from llmrl.loop import Loop
    from llmrl.pool import Pool
    from llmrl.recipe import resolve
    from llmrl.run import build_stage, first_policy
    from llmrl.training.ranks import Ranks

    sections = {
        "model": {"path": str(folder / "model")},
        "data": {"source": str(folder / "prompts.jsonl"), "shuffle": False},
        "algorithm": {"name": "grpo", "reduce": "token_mean"},
                "rollout": {"prompts_per_step": shape.prompts_per_step, "group_size": shape.group_size,
                    "max_tokens": shape.max_tokens},
        "training": {"learning_rate": LEARNING_RATE},
    }  # fmt: skip
    (folder / "recipe.yaml").write_text(json.dumps(sections))
    recipe, ranks = resolve(folder / "recipe.yaml"), Ranks()
    policy = first_policy(recipe, folder)
    stage = build_stage(recipe, 0, policy, ranks, folder, None, Pool(1), functions=[even_share])
    policy.wrapped = ranks.accelerator.prepare_model(policy.module)
    return Loop(stage, ranks, seed)


def trl_trainer(
    shape: Shape, folder: Path, steps: int, seed: int, options: dict[str, Any], callbacks: tuple = ()
) -> Any:
    """A GRPOTrainer over the prompts in `folder`."""
    from datasets import load_dataset
    from transformers import AutoTokenizer
    from trl import GRPOConfig, GRPOTrainer

    rows = options.get("per_device_train_batch_size", GRPOConfig.per_device_train_batch_size)
    config = GRPOConfig(
        output_dir=str(folder / "trl"), max_steps=steps, learning_rate=LEARNING_RATE, num_generations=shape.group_size,
        gradient_accumulation_steps=shape.completions // rows,
        max_completion_length=shape.max_tokens, shuffle_dataset=False, use_cpu=True, report_to="none", save_strategy="no",
        disable_tqdm=True, logging_steps=1, seed=seed, **options,
    )  # fmt: skip
    prompts = load_dataset(
        "json", data_files=str(folder / "prompts.jsonl"), split="train", cache_dir=str(folder / "cache")
    )
    tokenizer = AutoTokenizer.from_pretrained(folder / "model")
    return GRPOTrainer(str(folder / "model"), even_share, config, prompts, processing_class=tokenizer,
                       callbacks=list(callbacks))  # fmt: skip


def measure_llmrl(shape: Shape, folder: Path, steps: int, seed: int) -> list[dict[str, float]]:
    """CPU-seconds by part, and the mean length, of each step; metrics are made as in a run."""
    from llmrl.observe import describe

    loop, out = llmrl_loop(shape, folder, seed), []
    time.perf_counter = time.process_time  # the loop's own clock, in CPU-seconds
    for number in range(steps):
        start = time.process_time() + scorers_time(loop.stage.pool)
        done = loop.step(number)
        row = describe(done, [s.name for s in loop.stage.scorers], loop.ranks)
        step = time.process_time() + scorers_time(loop.stage.pool) - start
        train = done.seconds["passes"] + done.seconds["update"]
        out.append(split(step, done.seconds["generate"], train, row["rollout/length"]))
    return out


def scorers_time(pool: Any) -> float:
    """CPU-seconds of the processes that scorers run in, which TRL does not have: they are part of our step."""
    pids = [worker.pid for worker in pool.staff] + ([pool.zygote.pid] if pool.zygote else [])
    return sum(int(Path(f"/proc/{pid}/schedstat").read_text().split()[0]) for pid in pids) / 1e9


def measure_trl(shape: Shape, folder: Path, steps: int, seed: int, options: dict[str, Any]) -> list[dict[str, float]]:
    """The same for TRL: a step lasts from the end of one to the end of the next, its data and its log included.

    'train' is what remains of the step when preparing the inputs (generation, rewards) and what lies between steps are
    taken away.
    """
    from transformers import TrainerCallback

    spent = {"generate": 0.0, "prepare": 0.0, "step": 0.0}
    out: list[dict[str, float]] = []

    class Watch(TrainerCallback):
        def on_step_begin(self, *_, **__):
            self.began = time.process_time()

        def on_step_end(self, *_, **__):
            now = time.process_time()
            prepare, generate = spent["prepare"], spent["generate"]
            out.append(split(now - spent["step"], generate, now - self.began - prepare, 0.0))
            spent.update(generate=0.0, prepare=0.0, step=now)

        def on_log(self, args, state, control, logs, **_):
            if "completions/mean_length" in logs:
                out[-1]["length"] = logs["completions/mean_length"]

    def timed(name: str, function: Any) -> Any:
        def call(*args: Any, **kwargs: Any) -> Any:
            start = time.process_time()
            answer = function(*args, **kwargs)
            spent[name] += time.process_time() - start
            return answer

        return call

    trainer = trl_trainer(shape, folder, steps, seed, options, (Watch(),))
    trainer._generate = timed("generate", trainer._generate)
    trainer._prepare_inputs = timed("prepare", trainer._prepare_inputs)
    spent["step"] = time.process_time()
    trainer.train()
    return out


def split(step: float, generate: float, train: float, length: float) -> dict[str, float]:
    return {"step": step, "generate": generate, "train": train, "rest": step - generate - train, "length": length}


def gradient_difference(shape: Shape, folder: Path) -> float:
    """Largest difference of the two gradients on one batch of token ids and advantages, over the largest component."""
    import torch

    from llmrl.clock import Clock
    from llmrl.collect import Collector
    from llmrl.policy.forward import padded
    from llmrl.training.assemble import ragged
    from llmrl.training.credit import assign_credit

    loop = llmrl_loop(shape, folder, seed=0)
    batch = Collector(loop.stage, loop.ranks, loop.seed_of).collect(0, Clock())[-1]
    assign_credit(batch, loop.stage.algorithm, loop.ranks)
    updater, found = loop.stage.updater, {}
    updater.settings = type(updater.settings)(**{**vars(updater.settings), "max_grad_norm": 1e9})
    updater.optimizer.register_step_pre_hook(
        lambda *_: found.update({n: p.grad.clone() for n, p in updater.policy.model.named_parameters()})
    )
    updater.update(batch, loop.stage.algorithm, learning_rate=0.0, seed=0)

    trainer = trl_trainer(shape, folder, 1, 0, EXACT)
    trainer.current_gradient_accumulation_steps = trainer.args.steps_per_generation = 1
    trainer.model.train()
    prompt_ids, prompt_mask = padded([s.training for s in batch.samples], torch.device("cpu"), left=True)
    mask = batch.arrays["loss_mask"]
    loss = trainer._compute_loss(trainer.model, {
        "prompt_ids": prompt_ids, "prompt_mask": prompt_mask, "completion_mask": mask.long(),
        "completion_ids": ragged([s.response for s in batch.samples], mask.shape[1], torch.long),
        "advantages": batch.arrays["advantages"][:, 0], "num_items_in_batch": mask.sum(),
    })  # fmt: skip
    loss.backward()
    theirs = {n: p.grad for n, p in trainer.model.named_parameters()}
    largest = max(g.abs().max().item() for g in theirs.values())
    return max((found[n] - g).abs().max().item() for n, g in theirs.items()) / largest


def in_process(shape: str, folder: Path, side: str, steps: int, seed: int = 0) -> Any:
    """What a process of this file prints for `side`, read as JSON."""
    environment = dict(os.environ) | {"OMP_NUM_THREADS": "1", "HF_HUB_OFFLINE": "1"}
    words = {"shape": shape, "side": side, "folder": str(folder), "steps": str(steps), "seed": str(seed)}
    command = [sys.executable, __file__, *(word for name, value in words.items() for word in (f"--{name}", value))]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, check=False)
    if done.returncode:
        raise SystemExit(f"{side}: the process ended with status {done.returncode}:\n{done.stderr[-2000:]}")
    return json.loads(done.stdout.splitlines()[-1])


def table(rows: dict[str, list[dict[str, float]]]) -> str:
    """A Markdown table: median CPU-seconds by part, the step's range, and the mean length."""
    lines = [
        "| side | step | range | generate | train | rest | mean length | steps |",
        "|---|---|---|---|---|---|---|---|",
    ]
    for side, steps in rows.items():
        middle = {part: f"{median(s[part] for s in steps):.3f}" for part in PARTS}
        low, high = min(s["step"] for s in steps), max(s["step"] for s in steps)
        length = sum(s["length"] for s in steps) / len(steps)
        lines.append(f"| {side} | {middle['step']} | {low:.3f}–{high:.3f} | {middle['generate']} | {middle['train']} | "
                     f"{middle['rest']} | {length:.1f} | {len(steps)} |")  # fmt: skip
    return "\n".join(lines)


def machine() -> str:
    """One line: processor and the versions that matter."""
    names = [line.partition(":")[2].strip() for line in Path("/proc/cpuinfo").read_text().splitlines()
             if line.startswith("model name")]  # fmt: skip
    packages = ", ".join(f"{name} {version(name)}" for name in ("torch", "transformers", "trl"))
    return f"{names[0] if names else platform.processor()}, 1 thread, Python {platform.python_version()}, {packages}"


def compare(shape: str, rounds: int, steps: int) -> None:
    """Print the comparison of gradients, the table and the ratio; SystemExit when the gradients differ."""
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        in_process(shape, folder, "make", WARM_UP + steps)
        difference = in_process(shape, folder, "check", 1)
        print(f"{machine()}\ngradients of one batch differ by {difference:.1e} of the largest component")
        if not difference < GRADIENT_TOLERANCE:
            raise SystemExit(
                f"expected less than {GRADIENT_TOLERANCE:g}: the sides do not do equal work. Compare the losses."
            )
        rounds_of = {side: [] for side in SIDES}
        for seed in range(rounds):
            for side in SIDES:
                rounds_of[side].append(in_process(shape, folder, side, WARM_UP + steps, seed)[WARM_UP:])
    each = [ratio({side: found[i] for side, found in rounds_of.items()}) for i in range(rounds)]
    rows = {side: [step for some in found for step in some] for side, found in rounds_of.items()}
    print(
        f"{table(rows)}\nratios of the rounds: {', '.join(f'{r:.2f}' for r in each)}\nratio {shape} {ratio(rows):.2f}"
    )


def ratio(rows: dict[str, list[dict[str, float]]]) -> float:
    """Median step of the faster TRL side over llmrl's."""
    middle = {side: median(s["step"] for s in found) for side, found in rows.items()}
    return min(middle[side] for side in SIDES[1:]) / middle["llmrl"]


def measure(shape: Shape, folder: Path, side: str, steps: int, seed: int) -> Any:
    """What one process does: make the inputs, compare gradients, or time a side."""
    import torch
    from transformers import AutoTokenizer

    torch.set_num_threads(1)
    if side == "make":
        make_model(shape, folder / "model")
        return make_prompts(shape, steps, folder / "prompts.jsonl", AutoTokenizer.from_pretrained(folder / "model"))
    if side == "check":
        return gradient_difference(shape, folder)
    if side == "llmrl":
        return measure_llmrl(shape, folder, steps, seed)
    return measure_trl(shape, folder, steps, seed, shape.tuned if side == "TRL, tuned" else {})


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--shape", choices=SHAPES, default="A")
    parser.add_argument("--rounds", type=int, default=3, help="processes a side, taken in turns")
    parser.add_argument("--steps", type=int, default=4, help=f"measured steps a process, after {WARM_UP} to warm up")
    parser.add_argument("--side", choices=[*SIDES, "make", "check"], help=argparse.SUPPRESS)
    parser.add_argument("--folder", type=Path, help=argparse.SUPPRESS)
    parser.add_argument("--seed", type=int, default=0, help=argparse.SUPPRESS)
    given = parser.parse_args()
    if given.side is None:
        compare(given.shape, given.rounds, given.steps)
    else:
        print(json.dumps(measure(SHAPES[given.shape], given.folder, given.side, given.steps, given.seed)))


if __name__ == "__main__":
    main()

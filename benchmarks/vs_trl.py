"""CPU-seconds of a GRPO step on one thread: llmrl beside TRL's GRPOTrainer, each with transformers and with vLLM.

    python benchmarks/vs_trl.py --shape A [--write]

Same model file, prompts in the same order, number of completions, limits, reward and loss. Each side measures in
processes of its own, taken in turns, with `time.process_time`, which other programs on the machine disturb far less than
a wall clock. The two gradients of one batch are compared first: unequal work would make the rest worthless.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import tempfile
from importlib.util import find_spec
from pathlib import Path
from statistics import fmean, median
from typing import Any

from benchmarks.report import figure, machine, section, spread, table
from benchmarks.shapes import SHAPES, Shape, make_model, make_prompts
from benchmarks.trainers import KV_CACHE_BYTES, Steps, gradient_difference, measure_llmrl, measure_trl

PARTS = ("step", "generate", "train", "rest")
WARM_UP = 2
GRADIENT_TOLERANCE = 1e-4  # of the largest component


def sides(shape: Shape) -> dict[str, tuple[str, dict[str, Any]]]:
    """What is compared: whose trainer, and its options. vLLM's importance correction is off, as it changes the loss and
    costs TRL a forward pass."""
    in_vllm = {
        "use_vllm": True,
        "vllm_mode": "colocate",
        "vllm_max_model_length": shape.longest_prompt + shape.max_tokens,
        "vllm_importance_sampling_correction": False,
    }
    out = {
        "llmrl": ("llmrl", {"engine": "transformers"}),
        "TRL, defaults": ("TRL", {}),
        "TRL, tuned": ("TRL", shape.tuned),
        "llmrl, vLLM": ("llmrl", {"engine": {"name": "vllm", "kv_cache_megabytes": KV_CACHE_BYTES >> 20}}),
        "TRL, tuned, vLLM": ("TRL", shape.tuned | in_vllm),
    }
    return out if find_spec("vllm") else {name: side for name, side in out.items() if "vLLM" not in name}


def in_process(
    shape: str, folder: Path, what: str, steps: int, seed: int = 0, options: dict[str, Any] | None = None
) -> Any:
    """What a process of this file prints for `what`, read as JSON."""
    environment = dict(os.environ) | {"OMP_NUM_THREADS": "1", "HF_HUB_OFFLINE": "1"}
    words = {"shape": shape, "what": what, "folder": str(folder), "steps": str(steps), "seed": str(seed),
             "options": json.dumps(options or {})}  # fmt: skip
    command = [sys.executable, __file__, *(word for name, value in words.items() for word in (f"--{name}", value))]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, check=False)
    if done.returncode:
        raise SystemExit(f"{what}: the process ended with status {done.returncode}:\n{done.stderr[-2000:]}")
    return json.loads(done.stdout.splitlines()[-1])


def measure(shape: Shape, folder: Path, what: str, steps: int, seed: int, options: dict[str, Any]) -> Any:
    """What one process does: make the inputs, compare gradients, or time a trainer."""
    import torch
    from transformers import AutoTokenizer

    torch.set_num_threads(1)
    if what == "make":
        make_model(shape, folder / "model")
        return make_prompts(shape, steps, folder / "prompts.jsonl", AutoTokenizer.from_pretrained(folder / "model"))
    if what == "check":
        return gradient_difference(shape, folder)
    return (measure_llmrl if what == "llmrl" else measure_trl)(shape, folder, steps, seed, options)


def compare(name: str, rounds: int, steps: int) -> tuple[float, dict[str, list[Steps]]]:
    """The difference of the gradients, and the steps of each round by side; SystemExit when the gradients differ."""
    with tempfile.TemporaryDirectory() as place:
        folder = Path(place)
        in_process(name, folder, "make", WARM_UP + steps)
        difference = in_process(name, folder, "check", 1)
        if not difference < GRADIENT_TOLERANCE:
            raise SystemExit(
                f"shape {name}: gradients of one batch differ by {difference:.1e} of the largest component, expected less "
                f"than {GRADIENT_TOLERANCE:g}: the sides do not do equal work. Compare the losses."
            )
        found: dict[str, list[Steps]] = {side: [] for side in sides(SHAPES[name])}
        for seed in range(rounds):
            for side, (whose, options) in sides(SHAPES[name]).items():
                found[side].append(in_process(name, folder, whose, WARM_UP + steps, seed, options)[WARM_UP:])
    return difference, found


def ratios(found: dict[str, list[Steps]], ours: str = "llmrl") -> list[float]:
    """Of each round, the median step of the fastest TRL side over that of ours."""
    middle = {side: [median(s["step"] for s in steps) for steps in rounds] for side, rounds in found.items()}
    theirs = [rounds for side, rounds in middle.items() if side.startswith("TRL")]
    return [min(other) / own for own, *other in zip(middle[ours], *theirs, strict=True)]


def report(name: str, difference: float, found: dict[str, list[Steps]]) -> str:
    """The section of a shape."""
    rows = []
    for side, rounds in found.items():
        steps = [step for some in rounds for step in some]
        parts = [spread([step[part] for step in steps]) for part in PARTS]
        rows.append([side, *parts, f"{fmean(step['length'] for step in steps):.1f}", len(steps)])
    shape, lines = SHAPES[name], [table(["side", *PARTS, "mean length", "steps"], rows), ""]
    lines.append(f"TRL's fastest side over ours, of the rounds: {spread(ratios(found), 2)}")
    if "llmrl, vLLM" in found:
        lines[-1] += f"; over ours with vLLM: {spread(ratios(found, 'llmrl, vLLM'), 2)}"
    lines[-1] += f". Gradients of one batch differ by {difference:.1e} of the largest component."
    title = (f"### Shape {name}: {shape.prompts_per_step} prompts of at most {shape.longest_prompt} tokens × "
             f"{shape.group_size} answers of at most {shape.max_tokens}")  # fmt: skip
    return "\n".join([title, "", *lines, "", machine()])


def draw(found: dict[str, dict[str, list[Steps]]]) -> None:
    """A bar a side, generate under train, one panel a shape."""
    with figure("vs_trl", panels=len(found), width=3.4, height=3.6) as panels:
        for axes, (name, by_side) in zip(panels if len(found) > 1 else [panels], found.items(), strict=True):
            names, bottom = [side.replace(", ", "\n") for side in by_side], [0.0] * len(by_side)
            for part in ("generate", "train"):
                height = [median(s[part] for some in rounds for s in some) for rounds in by_side.values()]
                axes.bar(names, height, bottom=bottom, width=0.7, label=part)
                bottom = [a + b for a, b in zip(bottom, height, strict=True)]
            axes.set_title(f"Shape {name}")
            axes.tick_params("x", labelsize=8)
            axes.grid(visible=False, axis="x")
        first = panels[0] if len(found) > 1 else panels
        first.set_ylabel("CPU-seconds a step")
        first.legend()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--shape", choices=[*SHAPES, "all"], default="A")
    parser.add_argument("--rounds", type=int, default=3, help="processes a side, taken in turns")
    parser.add_argument("--steps", type=int, default=3, help=f"measured steps a process, after {WARM_UP} to warm up")
    parser.add_argument("--write", action="store_true", help="write the sections of docs/benchmarks.md")
    parser.add_argument("--what", choices=["make", "check", "llmrl", "TRL"], help=argparse.SUPPRESS)
    parser.add_argument("--folder", type=Path, help=argparse.SUPPRESS)
    parser.add_argument("--seed", type=int, default=0, help=argparse.SUPPRESS)
    parser.add_argument("--options", type=json.loads, help=argparse.SUPPRESS)
    given = parser.parse_args()
    if given.what is not None:
        print(
            json.dumps(measure(SHAPES[given.shape], given.folder, given.what, given.steps, given.seed, given.options))
        )
        return
    found = {}
    for name in SHAPES if given.shape == "all" else [given.shape]:
        difference, found[name] = compare(name, given.rounds, given.steps)
        text = report(name, difference, found[name])
        print(text, flush=True)
        if given.write:
            section(f"vs_trl {name}", text)
        print(f"ratio {name} {median(ratios(found[name])):.2f}", flush=True)
    if given.write and given.shape == "all":
        draw(found)


if __name__ == "__main__":
    main()

"""Which GRPOConfig options make TRL fastest at a shape: what `tuned` of shapes.py rests on.

    python benchmarks/tune_trl.py --shape A [--write]

Each setting steps in processes of its own, in turns with the others, as in vs_trl.py. Slow: a quarter of an hour a shape.
"""

from __future__ import annotations

import argparse
import sys
import tempfile
from pathlib import Path
from statistics import median
from typing import Any

from benchmarks.report import machine, section, spread, table
from benchmarks.shapes import SHAPES, Shape
from benchmarks.vs_trl import WARM_UP, in_process

PARTS = ("step", "generate", "train")


def settings(shape: Shape) -> dict[str, dict[str, Any]]:
    """Options by what they are called in the table. The loss is the same in all; bf16 weights train in another precision."""
    rows = [8, 16, 32] if shape.completions == 32 else [8, 32, shape.completions]
    out: dict[str, dict[str, Any]] = {"defaults": {}}
    for precision in ("fp32", "bf16"):
        for count in rows:
            out[f"{precision}, no checkpointing, {count} together"] = options(precision, count)
    whole = options("fp32", shape.completions)
    batching = {"num_blocks": 256, "max_batch_tokens": 2048}  # its defaults take half of the machine's memory
    out["bf16 weights too, all together"] = options("bf16", shape.completions) | {
        "model_init_kwargs": {"dtype": "bfloat16"}
    }
    out["fp32, static cache, all together"] = whole | {"cache_implementation": "static"}
    out["fp32, continuous batching, all together"] = whole | {
        "use_transformers_continuous_batching": True,
        "transformers_continuous_batching_config": batching,
    }
    return out


def options(precision: str, rows: int) -> dict[str, Any]:
    return {"bf16": precision == "bf16", "gradient_checkpointing": False, "per_device_train_batch_size": rows}


def tune(name: str, rounds: int, steps: int) -> str:
    """The table, fastest first. A setting that fails is listed with what it said."""
    found: dict[str, list[dict[str, float]]] = {}
    failed: dict[str, str] = {}
    with tempfile.TemporaryDirectory() as place:
        folder = Path(place)
        in_process(name, folder, "make", WARM_UP + steps)
        for seed in range(rounds):
            for label, chosen in settings(SHAPES[name]).items():
                if label in failed:
                    continue
                try:
                    got = in_process(name, folder, "TRL", WARM_UP + steps, seed, chosen)[WARM_UP:]
                except SystemExit as error:
                    failed[label] = str(error).strip().splitlines()[-1]
                    continue
                found.setdefault(label, []).extend(got)
                print(label, *(f"{step['step']:.2f}" for step in got), file=sys.stderr, flush=True)
    order = sorted(found, key=lambda label: median(step["step"] for step in found[label]))
    rows = [[label, *(spread([step[part] for step in found[label]], 2) for part in PARTS)] for label in order]
    rows += [[label, reason, "", ""] for label, reason in failed.items()]
    return f"#### TRL at shape {name}\n\n{table(['setting', *PARTS], rows)}\n\n{machine()}"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--shape", choices=SHAPES, default="A")
    parser.add_argument("--rounds", type=int, default=1, help="processes a setting, taken in turns")
    parser.add_argument("--steps", type=int, default=3, help=f"measured steps a process, after {WARM_UP} to warm up")
    parser.add_argument("--write", action="store_true", help="write the section of docs/benchmarks.md")
    given = parser.parse_args()
    text = tune(given.shape, given.rounds, given.steps)
    print(text)
    if given.write:
        section(f"tune_trl {given.shape}", text)


if __name__ == "__main__":
    main()

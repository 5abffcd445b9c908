"""Peak memory of one update, llmrl beside TRL's GRPOTrainer, over the length of the answers.

    python benchmarks/memory.py            # about ten CPU-minutes; --write puts the result into docs/benchmarks.md

One prompt of 256 tokens and 8 answers, all of the same length, of made token ids: nothing is generated. Each point is
the highest resident memory of a process of its own during forward, backward and the optimizer's first step, less what
the process held just before, with everything imported and the model loaded. glibc is told to give back what is freed.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))
from benchmarks.made import made, make_model, our_batch, our_update, our_updater, trl_updater
from benchmarks.report import COLOURS, figure, machine, section, table
from benchmarks.shapes import Shape, make_prompts

VOCABULARY, HIDDEN, LAYERS, PROMPT, GROUP = 32768, 256, 4, 256, 8
LENGTHS = (256, 512, 1024, 2048, 4096)
SIDES: dict[str, dict[str, Any]] = {  # options of our `model` section and of `our_updater`, or of GRPOConfig
    "llmrl": {},
    "llmrl, 8 rows at once": {"tokens": 1 << 20, "gradient_checkpointing": False},
    "TRL, defaults": {},
    "llmrl, checkpointing": {"gradient_checkpointing": True},
    "llmrl, prompt not shared": {"shared_prompt": "off"},
    "TRL, one row at a time": {"per_device_train_batch_size": 1},
    "TRL, without checkpointing": {"gradient_checkpointing": False},
}
EVERYWHERE, ELSEWHERE = (
    ("llmrl", "llmrl, 8 rows at once", "TRL, defaults"),
    2048,
)  # the other sides are measured at one length alone
MIB = 1 << 20
# what is freed goes back at once: else its holes scatter the same update's peak by a quarter
ALLOCATOR = {"MALLOC_MMAP_THRESHOLD_": str(MIB), "MALLOC_TRIM_THRESHOLD_": str(MIB)}


def status(name: str) -> int:
    """Bytes, from the kernel's account of this process."""
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) << 10 for line in lines if line.startswith(f"{name}:"))


class Watch:
    """Between `begin` and `end`: the most that was resident above the beginning."""

    def begin(self) -> None:
        Path("/proc/self/clear_refs").write_text("5")  # the high-water mark falls to what is resident now
        self.base = status("VmRSS")

    def end(self) -> dict[str, float]:
        return {"before": self.base / MIB, "peak": (status("VmHWM") - self.base) / MIB}


def measure(side: str, folder: Path, length: int) -> dict[str, float]:
    """What one process does: load, then one update."""
    import torch

    torch.set_num_threads(1)
    given, watch = made(VOCABULARY, 1, GROUP, PROMPT, length), Watch()
    if side.startswith("llmrl"):
        updater, batch = our_updater(folder / "model", **SIDES[side]), our_batch(given)
        watch.begin()
        our_update(updater, batch)
        return watch.end()

    from transformers import AutoTokenizer, TrainerCallback

    found: dict[str, float] = {}

    class Step(TrainerCallback):
        def on_step_begin(self, *_: Any, **__: Any) -> None:
            watch.begin()

        def on_step_end(self, *_: Any, **__: Any) -> None:
            found.update(watch.end())

    shape = Shape({}, 1, GROUP, PROMPT, length, length, {})
    make_prompts(shape, 1, folder / "prompts.jsonl", AutoTokenizer.from_pretrained(folder / "model"))
    trl_updater(shape, folder, given, SIDES[side], 1, Step()).train()
    return found


def in_process(side: str, folder: Path, length: int) -> dict[str, float]:
    """What a process of this file prints, read as JSON. SystemExit when it fails."""
    environment = dict(os.environ) | {"OMP_NUM_THREADS": "1", "HF_HUB_OFFLINE": "1"} | ALLOCATOR
    command = [sys.executable, __file__, "--side", side, "--folder", str(folder), "--length", str(length)]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, check=False)
    if done.returncode:
        raise SystemExit(f"{side}, {length} tokens: status {done.returncode}:\n{done.stderr[-2000:]}")
    return json.loads(done.stdout.splitlines()[-1])


def growth(peaks: dict[int, float]) -> tuple[float, float, float]:
    """(MiB a token of one answer by the line through all points but the longest; how far that lies above the line, as a
    share; the same by the curve of second degree through all points, for which its square term is responsible there).
    """
    import numpy

    lengths, values = list(peaks), list(peaks.values())
    slope, start = numpy.polyfit(lengths[:-1], values[:-1], 1)
    square, *_ = numpy.polyfit(lengths, values, 2)
    return slope, values[-1] / (start + slope * lengths[-1]) - 1, square * lengths[-1] ** 2 / values[-1]


def draw(peaks: dict[str, dict[int, float]]) -> None:
    with figure("memory", width=8.6) as axes:
        for side, of_length in peaks.items():
            colour = COLOURS[side.startswith("TRL")]
            if side in EVERYWHERE:
                line = "--" if side == EVERYWHERE[1] else "-"
                axes.plot(list(of_length), list(of_length.values()), line, marker="o", color=colour, label=side)
            else:
                mark = "DsX^"[[other for other in SIDES if other not in EVERYWHERE].index(side)]
                axes.plot(list(of_length), list(of_length.values()), mark, color=colour, mfc="white", label=side)
        axes.set(xlabel=f"tokens of each of {GROUP} answers", ylabel="MiB", title="Peak memory of one update", ylim=0)
        axes.set_xticks(LENGTHS, [f"{n:,}" for n in LENGTHS], rotation=30)
        axes.legend(fontsize=9, handlelength=3, loc="center left", bbox_to_anchor=(1, 0.5))


def compare(lengths: list[int], write: bool) -> None:
    """Print the table and what grows how; with `write` also into the page, with the picture."""
    of_side = {side: [n for n in lengths if side in EVERYWHERE or n == ELSEWHERE] for side in SIDES}
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        make_model(folder / "model", VOCABULARY, HIDDEN, LAYERS, positions=2 * max(lengths))
        found = {side: {n: in_process(side, folder, n) for n in mine} for side, mine in of_side.items() if mine}
    text = described(found, lengths)
    print(f"{machine()}\n\n{text}")
    if write:
        draw({side: {n: row["peak"] for n, row in rows.items()} for side, rows in found.items()})
        section(
            "memory", f"![Peak memory over the length of answers](images/bench-memory.svg)\n\n{text}\n\n{machine()}."
        )


def described(found: dict[str, dict[int, dict[str, float]]], lengths: list[int]) -> str:
    """The table, and a line on the growth of each side that was measured everywhere."""
    rows = []
    for side, of_length in found.items():
        cells = [f"{of_length[n]['peak']:,.0f}" if n in of_length else "" for n in lengths]
        starts = sorted(row["before"] for row in of_length.values())
        rows.append([side, *cells, f"{starts[len(starts) // 2]:,.0f}"])
    lines = [table(["MiB", *(f"{n:,}" for n in lengths), "start"], rows), ""]
    for side in EVERYWHERE[1:] if len(lengths) > 3 else ():  # the first one's rows are cut by its micro-batches
        slope, above, square = growth({n: row["peak"] for n, row in found[side].items()})
        lines.append(f"- {side}: {1024 * slope / GROUP:.0f} KiB a token up to {lengths[-2]:,} tokens an answer; {lengths[-1]:,} "
                     f"lie {100 * above:+.0f} % off that line, the square term of a parabola is "
                     f"{100 * square:.0f} % of them.")  # fmt: skip
    return "\n".join(lines)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--lengths", type=int, nargs="+", default=list(LENGTHS), help="tokens of an answer")
    parser.add_argument("--write", action="store_true", help="write the section and the picture, too")
    parser.add_argument("--side", choices=SIDES, help=argparse.SUPPRESS)
    parser.add_argument("--folder", type=Path, help=argparse.SUPPRESS)
    parser.add_argument("--length", type=int, help=argparse.SUPPRESS)
    given = parser.parse_args()
    if given.side is None:
        compare(given.lengths, given.write)
    else:
        print(json.dumps(measure(given.side, given.folder, given.length)))


if __name__ == "__main__":
    main()

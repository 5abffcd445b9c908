"""The documents' small-scale check of every method, on tables; writes benchmarks/lab/findings.json.

    python -m benchmarks.lab.run [METHOD ...] [--fast] [--seeds 8]

Without names every check is made; --fast: those that took less than three seconds. Same seeds, same numbers.
"""

from __future__ import annotations

import argparse
import json
import time

import torch

from benchmarks.lab.checks import CHECKS, FINDINGS, SEEDS, check, fast, stored
from benchmarks.lab.finding import Finding


def line(found: Finding, seconds: float) -> str:
    mark = "came out" if found.came_out else "did not come out"
    interval = f"({found.low:.3g} to {found.high:.3g})"
    return f"{found.method:<16} {mark:<17} {found.effect:.3g} {interval}, {found.expected}; {found.what}  [{seconds:.1f} s]"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("methods", nargs="*", choices=[*CHECKS, []], metavar="METHOD")
    parser.add_argument("--fast", action="store_true")
    parser.add_argument("--seeds", type=int, default=SEEDS)
    asked = parser.parse_args()
    torch.set_num_threads(1)
    rows = stored()
    for method in asked.methods or (fast() if asked.fast else CHECKS):
        began = time.process_time()
        found = check(method)(asked.seeds)
        seconds = time.process_time() - began
        print(line(found, seconds), flush=True)
        rows[method] = found._asdict() | {"cpu_seconds": round(seconds, 1)}
        FINDINGS.write_text(json.dumps({m: rows[m] for m in CHECKS if m in rows}, indent=1, ensure_ascii=False) + "\n")


if __name__ == "__main__":
    main()

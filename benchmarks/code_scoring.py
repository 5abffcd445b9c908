"""What grading code gives and costs: the published solutions of HumanEval and MBPP through the pool and the sandbox.

    python benchmarks/code_scoring.py

Reads ../shared/data. Every solution is right, so any number below the whole is the scorer's. Rounds are interleaved with
nothing; the best of three is shown beside all, because other programs on the machine only add.
"""

from __future__ import annotations

import json
import time
from pathlib import Path

from llmrl.config import Scoring
from llmrl.pool import Pool
from llmrl.scoring import make_scorers, score
from llmrl.types import Group, Prompt, Rollout

DATA = Path(__file__).resolve().parents[1].parent / "shared" / "data"
ROUNDS = {"humaneval": 3, "mbpp": 1}
WORKERS = 2


def humaneval_groups() -> list[Group]:
    rows = [json.loads(line) for line in (DATA / "humaneval.jsonl").open(encoding="utf-8")]
    return [
        Group(Prompt(row["task_id"], text=row["prompt"], columns=row), (Rollout((), row["canonical_solution"]),))
        for row in rows
    ]


def mbpp_groups() -> list[Group]:
    rows = [json.loads(line) for line in (DATA / "mbpp.jsonl").open(encoding="utf-8")]
    answer = "```python\n{}\n```".format
    return [
        Group(Prompt(str(row["task_id"]), text=row["text"], columns=row), (Rollout((), answer(row["code"])),))
        for row in rows
    ]


def main() -> None:
    print("| solutions | right | errors | seconds, best | all rounds | sandbox |\n|---|---|---|---|---|---|")
    with Pool(WORKERS) as pool:
        for name, groups in (("humaneval", humaneval_groups()), ("mbpp", mbpp_groups())):
            scorers, seconds = make_scorers([name]), []
            score(groups[:WORKERS], scorers, Scoring(max_error_share=1.0), pool)  # processes start, the tier is chosen
            for _ in range(ROUNDS[name]):
                start = time.perf_counter()
                scored = score(groups, scorers, Scoring(max_error_share=1.0), pool)
                seconds.append(time.perf_counter() - start)
            scores = [group.scores[0][name] for group in scored]
            right, errors = sum(one.value == 1 for one in scores), sum(one.error is not None for one in scores)
            tiers = ", ".join(sorted({one.evidence["tier"] for one in scores if one.error is None}))
            rounds = ", ".join(f"{s:.1f}" for s in seconds)
            print(
                f"| {name} | {right}/{len(scores)} | {errors} | {min(seconds):.1f} | {rounds} | {tiers} |", flush=True
            )


if __name__ == "__main__":
    main()

"""Do reward models learn what they should? Orders, human preferences, steps of sums; prints docs/scoring.md's lines.

    python benchmarks/learned_rewards.py order|human|steps [--data FILE] [--seeds 0 1 2] [--out runs/learned_rewards]

order: pairs of words of which the one with more a's is chosen. human: pairs of Anthropic's harmless dialogues (--data) in
five folds, four of them judged by a model that has not seen them. steps: a policy that adds in two lines and is often
wrong, labels from eight completions of every prefix of its own solutions, process reward models fitted to them.
One thread each; `llmrl train` runs in this process.
"""

from __future__ import annotations

import argparse
import json
import os
import random
import re
import shutil
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import Any

os.environ.setdefault("OMP_NUM_THREADS", "1")

from llmrl import train
from llmrl.ops.intervals import wilson

RECIPES = Path(__file__).resolve().parents[1] / "recipes"
KINDS = {
    "soft": ("soft", 1.0),
    "ER 1": ("entropy_regularised", 1.0),
    "ER 2": ("entropy_regularised", 2.0),
    "hard": ("hard", 1.0),
}
QUIET = {"tracking.panel": "off", "tracking.rollouts_every": 0}
FOLDS = 5
LAST_NUMBER = {"name": "math_answer", "protocol": "llmrl/last-number@1"}


def write(path: Path, rows: Sequence[dict[str, Any]]) -> str:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return str(path)


def trained(recipe: str, out: Path, name: str, **keys: Any) -> tuple[Path, dict[str, float]]:
    """(folder of the run, its last metrics); a run that has finished there is read, not repeated."""
    folder = out / name
    if not (folder / "result.json").exists():
        shutil.rmtree(folder, ignore_errors=True)
        words = {key.replace("__", "."): value for key, value in keys.items()}
        train(RECIPES / recipe, {"out": str(out), "name": name} | QUIET | words)
    return folder, json.loads((folder / "result.json").read_text())


def order(out: Path, seed: int) -> float:
    """Held-out pair accuracy on words ordered by how many a's they have."""
    rng = random.Random(seed)

    def pair() -> dict[str, str]:
        while True:
            some = sorted(("".join(rng.choices("abcd", k=8)) for _ in "12"), key=lambda word: word.count("a"))
            if some[0].count("a") < some[1].count("a"):
                return {"prompt": "Say:", "chosen": some[1], "rejected": some[0]}

    pairs = [pair() for _ in range(3000)]
    test = write(out / f"order-{seed}-test.jsonl", pairs[:500])
    _, metrics = trained(
        "reward_model.yaml", out, f"order-{seed}", seed=seed,
        data__source=write(out / f"order-{seed}.jsonl", pairs[500:]), data__format="pairs",
        evaluation__held_out__data__source=test, evaluation__held_out__data__format="pairs",
        training__steps=150, training__weight_decay=0.1,
    )  # fmt: skip
    return metrics["eval/held_out/accuracy"]


def human(out: Path, data: Path, seed: int) -> tuple[int, int]:
    """(right, all) held-out pairs of the folds after the first, on which the settings were chosen.

    Of a dialogue only the last question and its two answers are read. Frequent words of a fold's training part are one
    token each.
    """
    rows = [last_exchange(json.loads(line)) for line in data.read_text().splitlines()]
    random.Random(seed).shuffle(rows)
    right = total = 0
    size = len(rows) // FOLDS
    for fold in range(1, FOLDS):
        test, rest = rows[fold * size : (fold + 1) * size], rows[: fold * size] + rows[(fold + 1) * size :]
        seen: Counter[str] = Counter()
        for row in rest:
            for side in ("chosen", "rejected"):
                seen.update(set(re.findall(r" [A-Za-z']+", " " + row[side])))
        _, metrics = trained(
            "reward_model.yaml", out, f"human-{seed}-{fold}", seed=seed,
            data__source=write(out / f"human-{seed}-{fold}.jsonl", rest), data__format="pairs",
            evaluation__held_out__data__source=write(out / f"human-{seed}-{fold}-test.jsonl", test),
            evaluation__held_out__data__format="pairs", evaluation__held_out__every=0,
            model__make__added=[word for word, _ in seen.most_common(400) if len(word) > 2],
        )  # fmt: skip
        judged = len(test) - int(metrics["eval/held_out/refused"])
        right += round(metrics["eval/held_out/accuracy"] * judged)
        total += judged
    return right, total


def last_exchange(row: dict[str, str]) -> dict[str, Any]:
    """A pair of dialogue strings cut to the last question and the two answers."""
    before, _, chosen = row["chosen"].rpartition("\n\nAssistant:")
    question = before.rpartition("\n\nHuman:")[2].strip()
    rejected = row["rejected"].rpartition("\n\nAssistant:")[2]
    return {"prompt": [{"role": "user", "content": question}], "chosen": chosen.strip(), "rejected": rejected.strip()}


def steps(out: Path, seed: int, kinds: Sequence[str]) -> dict[str, Any]:
    """A policy, labels from its rollouts, a process reward model a kind of label; what each is worth on held-out sums."""
    from llmrl.config import Data, Model
    from llmrl.types import Group, Rollout
    from reward_models.process_labels import Labelling, label, write_labels
    from reward_models.process_reward import best_of_n, process_reward

    def sums(name: str, model: dict[str, Any], **keys: Any) -> Path:
        return trained("base/addition.yaml", out, name, seed=seed, rollout__max_tokens=24, **model, **keys)[0]

    schedule = {"training__schedule": "linear", "training__final_share": 0.05, "training__warmup_steps": 30}
    able = sums(f"able-{seed}", {}, data__source={"name": "addition_solutions", "size": 3600}, training__steps=450,
                training__learning_rate=4e-3, **schedule)  # fmt: skip
    start = {"model__make": None, "model__path": str(able / "final")}
    policy = sums(f"policy-{seed}", start, data__source={"name": "addition_solutions", "size": 5120, "accuracy": 0.5},
                  training__steps=40, training__learning_rate=2e-4)  # fmt: skip
    how = Labelling(scorer=LAST_NUMBER, num_solutions=24, num_completions=8, max_tokens=24, seed=seed)
    labels = out / f"labels-{seed}.jsonl"
    model = Model(path=str(policy / "final"))
    write_labels(model, Data(source={"name": "addition", "size": 360}), labels, how)
    rows = [json.loads(line) for line in labels.read_text().splitlines()]
    every = [{k: label(tries, *way) for k, way in KINDS.items()} for row in rows for tries in row["outcomes"]]
    ordered = all(one["soft"] <= one["ER 1"] <= one["ER 2"] <= one["hard"] + 1e-12 for one in every)
    found: dict[str, Any] = {"labelled steps": len(every), "mean <= ER 1 <= ER 2 <= hard": ordered}
    judges = {}
    for kind in kinds:
        way = KINDS[kind]
        made = [r | {"labels": [*(label(tries, *way) for tries in r["outcomes"]), r["labels"][-1]]} for r in rows]
        judges[kind] = sums(
            f"judge-{kind.replace(' ', '')}-{seed}", start, algorithm={"name": "process_reward"},
            model__verdict_tokens=["+", "-"], data__source=write(out / f"labels-{kind}-{seed}.jsonl", made),
            data__format="steps", training__steps=600, training__learning_rate=4e-3, evaluation={"sampled": None},
            **schedule,
        )  # fmt: skip
    for split, which in (("train", "sums of the labels"), ("test", "held-out sums")):
        problems, answers = sampled(model, split, seed)
        right = [[last_number(text) == p.reference for text in some] for p, some in zip(problems, answers, strict=True)]
        found[f"{which}, one answer"] = sum(map(sum, right)) / sum(map(len, right))
        found[f"{which}, majority of 8"] = mean(majority(texts, flags) for texts, flags in eights(answers, right))
        groups = [Group(p, tuple(Rollout((0,), t) for t in some)) for p, some in zip(problems, answers, strict=True)]
        for kind, judge in judges.items():
            judged = process_reward(groups, path=str(judge / "final"), verdict_tokens=["+", "-"])
            scores = [[one.value for one in some] for some in judged]
            found[f"{which}, {kind}: AUC"] = auc(scores, right)
            picks = [best_of_n([s], [r])[0] for s, r in eights(scores, right)]
            found[f"{which}, {kind}: best of 8"] = mean(picks)
    return found


def sampled(model: Any, split: str, seed: int) -> tuple[list[Any], list[list[str]]]:
    """(40 sums of that split, 40 fresh answers of the model to each)."""
    from llmrl.config import Data
    from llmrl.data.prompts import load
    from llmrl.policy.load import load_policy
    from llmrl.run import make_engine
    from llmrl.types import Sampling

    policy = load_policy(model, Path(), seed=seed)
    problems = load(Data(source={"name": "addition", "size": 40}, split=split), policy.tokenizer, seed=seed).prompts
    engine = make_engine("transformers", policy, (32, 24))
    found = engine.generate(problems, Sampling(24), 40, [1000 * seed + 500_000 + i for i in range(len(problems))])
    return problems, [[policy.tokenizer.decode(list(r.ids), skip_special_tokens=True) for r in some] for some in found]


def eights(values: Sequence[Sequence[Any]], right: Sequence[Sequence[bool]]) -> list[tuple[Any, Any]]:
    return [(v[i : i + 8], r[i : i + 8]) for v, r in zip(values, right, strict=True) for i in range(0, len(v), 8)]


def majority(texts: Sequence[str], right: Sequence[bool]) -> float:
    """Whether the commonest final number is right; of equals each with its share."""
    votes = Counter(map(last_number, texts))
    first = [number for number, count in votes.items() if count == max(votes.values())]
    truth = {last_number(text) for text, flag in zip(texts, right, strict=True) if flag}
    return len(truth & set(first)) / len(first)


def last_number(text: str) -> str | None:
    return (re.findall(r"\d+", text) or [None])[-1]


def auc(scores: Sequence[Sequence[float]], right: Sequence[Sequence[bool]]) -> float:
    """How often a right answer scores above a wrong one, ties half, over all pairs of answers."""
    flat = sorted((s, r) for some, flags in zip(scores, right, strict=True) for s, r in zip(some, flags, strict=True))
    above = wrong = 0.0
    place = 0
    while place < len(flat):
        same = [flag for score, flag in flat[place:] if score == flat[place][0]]
        above += sum(same) * (wrong + 0.5 * (len(same) - sum(same)))
        wrong += len(same) - sum(same)
        place += len(same)
    return above / (wrong * (len(flat) - wrong))


def mean(values: Any) -> float:
    values = list(values)
    return sum(values) / len(values)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("what", choices=["order", "human", "steps"])
    parser.add_argument("--data", type=Path, help="human: pairs of dialogues, one JSON object a line")
    parser.add_argument("--kinds", nargs="+", choices=KINDS, default=[*KINDS], help="steps: labels to fit a model to")
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument("--out", type=Path, default=Path("runs/learned_rewards"))
    given = parser.parse_args()
    import torch

    torch.set_num_threads(1)
    for seed in given.seeds:
        if given.what == "order":
            print(f"seed {seed}: {order(given.out, seed):.3f} of 500 held-out pairs", flush=True)
        elif given.what == "human":
            right, total = human(given.out, given.data, seed)
            interval = wilson(right, total)
            print(
                f"seed {seed}: {right} of {total}, {interval.mean:.3f} ({interval.low:.3f} to {interval.high:.3f})",
                flush=True,
            )
        else:
            for name, number in steps(given.out, seed, given.kinds).items():
                print(
                    f"seed {seed}: {name}: {number if isinstance(number, bool | int) else format(number, '.3f')}",
                    flush=True,
                )


if __name__ == "__main__":
    main()

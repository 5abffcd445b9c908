"""What grading mathematics gives and costs: protocol tables, speed, hostile answers, agreement with math-verify.

    python benchmarks/math_scoring.py [tables] [speed] [bombs] [agreement]
    python benchmarks/math_scoring.py mixed > mixed.jsonl      completions in five formats, for `llmrl score`

`tables` and `speed` read GSM8K and MATH-500 from ../shared/data; `bombs` and `agreement` need no data. All by default.
"""

from __future__ import annotations

import json
import sys
import time
from collections import Counter
from collections.abc import Callable
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT / "tests" / "fixtures"))

import math_bombs  # noqa: E402
import protocol_grid  # noqa: E402

from llmrl.config import Scoring  # noqa: E402
from llmrl.pool import Pool  # noqa: E402
from llmrl.scoring import make_scorers, score  # noqa: E402
from llmrl.types import Group, Prompt, Rollout, Score  # noqa: E402
from reward_models.equivalence import TIME, normalised, split_unit  # noqa: E402
from reward_models.extraction import Found  # noqa: E402
from reward_models.math_answer import math_answer  # noqa: E402
from reward_models.mathematics import kernel, refusals  # noqa: E402
from reward_models.mathematics.protocols import DEFAULT, PROTOCOLS  # noqa: E402

DATA = ROOT.parent / "shared" / "data"
GSM8K_FORMS = {
    "#### N": "#### {}",
    "\\boxed{N}": "\\boxed{{{}}}",
    "The answer is N.": "The answer is {}.",
    "#### N.00": "#### {}.00",
    "ANSWER: N (checked 2 times)": "ANSWER: {}\n(checked 2 times)",
}
MATH_FORMS: dict[str, Callable[[str], str]] = {
    "$\\boxed{g}$": lambda g: f"$\\boxed{{{g}}}$",
    "\\dfrac for \\frac": lambda g: f"$\\boxed{{{g.replace(chr(92) + 'frac', chr(92) + 'dfrac')}}}$",
    "spaces inside braces": lambda g: f"$\\boxed{{ {g} }}$",
    "Answer: $g$": lambda g: f"Answer: ${g}$",
    "The final answer is $g$. I hope": lambda g: f"The final answer is ${g}$. I hope it is correct.",
    "Final Answer: ... (Minerva)": lambda g: f"Final Answer: The final answer is ${g}$. I hope it is correct.",
}
GSM8K_PROTOCOLS = [DEFAULT, "gsm8k/strict", "gsm8k/flexible", "verl/gsm8k", "math_verify"]
MATH_PROTOCOLS = [DEFAULT, "math_verify", "verl/math", "dapo", "hendrycks", "minerva"]


def golds(name: str) -> list[str]:
    """The answer column of a published data set."""
    return [json.loads(line)["answer"] for line in (DATA / name).read_text(encoding="utf-8").splitlines()]


def tables() -> None:
    """How many restated golds each protocol accepts: all are right, so any other number is the protocol's."""
    answers = golds("gsm8k_test.jsonl")
    rows = {name: [form.format(gold.rpartition("#### ")[2]) for gold in answers] for name, form in GSM8K_FORMS.items()}
    table(f"GSM8K ({len(answers)})", GSM8K_PROTOCOLS, answers, rows)
    answers = golds("math500.jsonl")
    table(
        f"MATH-500 ({len(answers)})",
        MATH_PROTOCOLS,
        answers,
        {name: [form(gold) for gold in answers] for name, form in MATH_FORMS.items()},
    )


def mixed() -> None:
    """GSM8K's test rows as JSONL, each with a right completion; the formats take turns, and every sixth one is wrong."""
    rows = [json.loads(line) for line in (DATA / "gsm8k_test.jsonl").read_text(encoding="utf-8").splitlines()]
    forms = list(GSM8K_FORMS.values())
    for number, row in enumerate(rows):
        worked, _, gold = row["answer"].rpartition("#### ")
        form = forms[number % len(forms)].format(gold if number % 6 else f"1{gold}")
        print(json.dumps(row | {"completion": f"<think>{worked.strip()}</think>\n{form}"}))


def table(title: str, protocols: list[str], answers: list[str], rows: dict[str, list[str]]) -> None:
    """One table as Markdown."""
    print(f"\n| {title} | {' | '.join(protocols)} |\n|---|{'---|' * len(protocols)}")
    for name, texts in rows.items():
        cells = [
            sum(judged(gold, text, one).value for gold, text in zip(answers, texts, strict=True)) for one in protocols
        ]
        print(f"| `{name}` | {' | '.join(f'{cell:.0f}' for cell in cells)} |")


def judged(gold: str, text: str, protocol: str = DEFAULT) -> Score:
    """math_answer in this process."""
    return math_answer(Prompt("p", text="", reference=gold), Rollout((), f"We see.\n{text}"), protocol=protocol)


def speed() -> None:
    """Answers a second: right ones restated, right ones rewritten so that algebra decides, and wrong ones."""
    answers = golds("math500.jsonl")
    pairs = [(gold, MATH_FORMS["\\dfrac for \\frac"](gold)) for gold in answers]
    pairs += [(gold, f"\\boxed{{{gold} + 0}}") for gold in answers]
    pairs += [(gold, f"\\boxed{{{other}}}") for gold, other in zip(answers, answers[1:] + answers[:1], strict=True)]
    judged("x^2", "\\boxed{x+1}")  # what is loaded once
    costs, by = [], Counter()
    for gold, text in pairs:
        start = time.process_time()
        by[judged(gold, text).evidence["by"]] += 1
        costs.append(time.process_time() - start)
    costs.sort()
    print(f"\n{len(pairs)} answers in one process: {len(pairs) / sum(costs):.0f}/s of processor time", end="; ")
    print(f"median {costs[len(costs) // 2] * 1e3:.2f} ms, p99 {costs[-len(costs) // 100] * 1e3:.1f} ms; {dict(by)}")
    groups = [
        Group(Prompt(str(i), text="", reference=gold), (Rollout((), text),)) for i, (gold, text) in enumerate(pairs)
    ]
    pooled(groups[:50], "warm-up")
    pooled(groups * 4, "in the pool")


def pooled(groups: list[Group], what: str) -> list[Group]:
    """Scored by the default protocol in the pool, with the time it took."""
    scorers = make_scorers(["math_answer"])
    with Pool() as pool:
        score(groups[:8], scorers, Scoring(max_error_share=1.0), pool)
        start = time.perf_counter()
        found = score(groups, scorers, Scoring(max_error_share=1.0), pool)
        spent = time.perf_counter() - start
    errors = sum(one.error is not None for group in found for scores in group.scores for one in scores.values())
    print(f"{what}: {len(groups)} answers in {spent:.1f} s, {len(groups) / spent:.0f}/s, {errors} errors")
    return found


def bombs() -> None:
    """Hostile answers: refused at once or ended by the deadline, always wrong, never an error."""
    found = math_bombs.BOMBS + math_bombs.made(1_000)
    refusals.refusal.cache_clear()
    start = time.process_time()
    refused = sum(refusals.refusal(text) is not None for text in found)
    print(
        f"\n{refused} of {len(found)} bombs refused in {(time.process_time() - start) / len(found) * 1e3:.2f} ms each"
    )
    found += math_bombs.SLOW
    groups = [
        Group(Prompt(str(i), text="", reference="x^2+1"), (Rollout((), f"\\boxed{{{text}}}"),))
        for i, text in enumerate(found)
    ]
    scored = pooled(groups, "bombs in the pool")
    right = sum(scores["math_answer"].value == 1.0 for group in scored for scores in group.scores)
    print(f"{right} judged right")


def agreement() -> None:
    """The default protocol's comparison beside math-verify's on the same boxed answers, differences by reason."""
    from math_verify import parse, verify

    pairs = [(write(gold), gold) for gold in protocol_grid.GOLDS for write in protocol_grid.WRITTEN]
    pairs += [(one, other) for one in protocol_grid.GOLDS for other in protocol_grid.GOLDS]
    found: Counter[str] = Counter()
    for answer, gold in pairs:
        theirs = verify(parse(f"\\boxed{{{gold}}}"), parse(f"\\boxed{{{answer}}}"))
        ours, _ = PROTOCOLS[DEFAULT].equal(Found(answer.strip(), "boxed"), gold)
        found["the same" if ours == theirs else reason(answer, gold)] += 1
    print(f"\n{len(pairs)} comparisons with math-verify: {dict(found)}")


def reason(answer: str, gold: str) -> str:
    """Which documented difference explains a pair."""
    if answer.endswith("."):
        return "closing period"
    if TIME.fullmatch(normalised(gold)) or TIME.fullmatch(normalised(answer)):
        return "time"
    units = {split_unit(normalised(one))[1] for one in (answer, gold)} - {""}
    return "percent" if "%" in units and len(units) == 1 else "unit" if units else "UNEXPLAINED"


if __name__ == "__main__":
    kernel.library()
    for part in sys.argv[1:] or ["tables", "speed", "bombs", "agreement"]:
        {"mixed": mixed, "tables": tables, "speed": speed, "bombs": bombs, "agreement": agreement}[part]()

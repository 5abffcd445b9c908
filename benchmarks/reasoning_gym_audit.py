"""Which of reasoning-gym's scorers can be fooled? Audits every task and writes llmrl/data/reasoning_gym_audit.py.

    python benchmarks/reasoning_gym_audit.py [TASK ...]          needs the extra reasoning-gym; 10 minutes on one core

With tasks named, only prints what it finds. A task passes when its scorer gives its own stored answers full marks, gives
none to the attacks of `llmrl score audit`, never raises or hangs, and never evaluates the answer as code: what it then
computes, its verdict too, would be the answer's to decide.
"""

from __future__ import annotations

import datetime
import json
import multiprocessing
import signal
import sys
import textwrap
from dataclasses import replace
from itertools import islice
from pathlib import Path

from llmrl.attacks import ATTACKS, Case
from llmrl.audit import Audit, Check, Example, audit
from llmrl.config import Data
from llmrl.data.formats import to_prompt
from llmrl.data.reasoning_gym import entries
from llmrl.oracles import wrong_for
from llmrl.scoring import LATE
from llmrl.types import Group, Score
from reward_models.reasoning_gym import entry_key, entry_of, unaudited

NAME, VERSION = "reasoning_gym", "0.1.25"
ENTRIES, SEED, SECONDS, TOTAL = 24, 7, 5.0, 180.0
OUT = Path(__file__).parents[1] / "llmrl" / "data" / "reasoning_gym_audit.py"


class Watch:
    """Notes code made out of text, such as by eval, while it is on."""

    def __init__(self):
        self.on, self.seen = False, False
        sys.addaudithook(self.note)

    def note(self, event: str, arguments: tuple) -> None:
        if self.on and event == "exec" and getattr(arguments[0], "co_filename", "").startswith("<string"):
            self.seen = True


class Late(BaseException):
    """An answer took too long."""


def audited(task: str) -> str | None:
    """Why a task is refused, or None."""
    try:
        rows = list(islice(entries(task, SEED, "train", {}), ENTRIES))
    except Exception as error:
        return f"it makes no entries by its name alone ({type(error).__name__}: {error})"
    right = [row["reference"] for row in rows]
    if not all(isinstance(answer, str) for answer in right):
        return "it has no stored answers that its scorer could be tried with"
    cases = []
    for place, row in enumerate(rows):
        prompt = to_prompt(row, Data(source=task), place + 1)
        cases.append(Case(prompt, right[place], wrong_for(place, right), "<answer>%s</answer>"))
    watch = Watch()
    found = audit(NAME, Example(cases), lambda groups: [judged(group, watch) for group in groups])
    print(f"{task}: {len(found.failed)} checks failed; {speed(found)}", file=sys.stderr, flush=True)
    reasons = ["its scorer evaluates the answer as code"] if watch.seen else []
    reasons += [told(check) for check in found.failed]
    return reasons[0] if reasons else None


def told(check: Check) -> str:
    """A failed check as a reason."""
    share = check.found.partition(",")[0]
    if check.name == "oracle":
        return f"of its own stored answers it takes only {share}"
    if check.name in ATTACKS or check.name == "both_answers":
        return f"it gives full marks to {share} of {check.about}"
    return f"{check.about}: {check.found}"


def judged(group: Group, watch: Watch) -> Group:
    """The group with the score of its one rollout."""
    try:
        entry_of(*entry_key(group.prompt))  # making an entry may run code; that is no fault of the scorer
    except Exception:  # noqa: S110 - the scorer itself will say so
        pass
    signal.setitimer(signal.ITIMER_REAL, SECONDS)
    watch.on = True
    try:
        score = unaudited(group.prompt, group.rollouts[0])
    except Late:
        score = Score(None, error=f"{LATE} {SECONDS:g} s")
    except Exception as error:
        score = Score(None, error=f"{type(error).__name__}: {error}"[:200])
    finally:
        watch.on = False
        signal.setitimer(signal.ITIMER_REAL, 0)
    return replace(group, scores=({NAME: score},))


def speed(found: Audit) -> str:
    return next(check.found for check in found.checks if check.name == "speed")


def late(*_) -> None:
    raise Late


def child(task: str, answers: multiprocessing.Queue) -> None:
    signal.signal(signal.SIGALRM, late)
    answers.put(audited(task))


def alone(task: str) -> str | None:
    """`audited` in a process of its own, which cannot take this one with it."""
    context = multiprocessing.get_context("fork")
    answers = context.Queue()
    process = context.Process(target=child, args=(task, answers))
    process.start()
    try:
        return answers.get(timeout=TOTAL)
    except Exception:
        return f"its audit did not end within {TOTAL:g} s"
    finally:
        process.kill()
        process.join()


def module(passed: list[str], refused: dict[str, str]) -> str:
    """The table as Python."""
    head = f'''"""Which tasks of reasoning-gym have a scorer that was not fooled: written by benchmarks/reasoning_gym_audit.py.

{len(passed)} of {len(passed) + len(refused)} tasks, {ENTRIES} entries of each, {datetime.date.today():%B %Y}.
"""

VERSION = "{VERSION}"
'''
    names = textwrap.fill(" ".join(passed), 116, initial_indent="    ", subsequent_indent="    ")
    lines = "".join(
        f"    {json.dumps(task)}: {json.dumps(reason, ensure_ascii=False)},\n"
        for task, reason in sorted(refused.items())
    )
    return f'{head}PASSED = tuple(\n    """\n{names}\n    """.split()\n)\nREFUSED = {{\n{lines}}}\n'


def main(tasks: list[str]) -> None:
    from reasoning_gym.factory import DATASETS

    found = {task: alone(task) for task in tasks or sorted(DATASETS)}
    for task, reason in found.items():
        print(f"{task:<26} {reason or 'passed'}")
    passed = [task for task, reason in found.items() if reason is None]
    print(f"{len(passed)} of {len(found)} passed")
    if not tasks:
        OUT.write_text(module(passed, {task: reason[:100] for task, reason in found.items() if reason}))


if __name__ == "__main__":
    main(sys.argv[1:])

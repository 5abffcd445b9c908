"""What each scorer is audited on: prompts, right and wrong responses, and the checks that say nothing about it.

One function a scorer, named in EXAMPLES beside the CATALOG. `llmrl score audit SCORER` runs them.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Any

from llmrl import catalog
from llmrl.attacks import Case
from llmrl.audit import Example
from llmrl.config import Data
from llmrl.data.formats import to_prompt
from llmrl.data.read import Row
from llmrl.types import Completion, Prompt

SIZE = 40
TAGGED = "<answer>%s</answer>"
THOUGHT = "<think>Step by step.</think>" + TAGGED
NO_REFERENCE = "looks at the text alone, there is no answer to be had"
WHOLE_TEXT = ("constant", "copied_prompt", "containment", "hidden", "both_answers", "broken_rows")
FENCED_CODE = "```python\n%s\n```"
FENCE = "```json\n%s\n```"
FEW = 6  # programs, each of which runs many times


def math_answer() -> Example:
    skip = {"copied_prompt": "an unevaluated sum equals its value here; numeric_answer and answer_tag want the number"}
    return replace(of_rows("arithmetic_chain", form="The sum is simple.\n\\boxed{%s}"), skip=skip)


def stated_confidence() -> Example:
    """Every response claims to be certain, so that a wrong one earns -1."""
    sure = of_rows("arithmetic_chain", form="The sum is simple.\n\\boxed{%s}\n<confidence>1</confidence>")
    return replace(sure, skip=math_answer().skip, full=0.0, none=-0.01)


def answer_tag() -> Example:
    return of_rows("arithmetic_chain", form=THOUGHT)


def exact_answer() -> Example:
    return of_rows("sorting", form=THOUGHT, wrong=swapped)


def countdown() -> Example:
    return of_rows("countdown", form=THOUGHT, wrong=another_value)


def format_tags() -> Example:
    skip = of_text("injection", "garbage", "long", "hostile")
    cases = texts("<think>So.</think><answer>4</answer>", "<think>So.<answer>4</answer>")
    return Example(cases, skip)


def majority_vote() -> Example:
    return math_answer()


def numeric_answer() -> Example:
    return of_rows("arithmetic_chain", form=THOUGHT)


def choice_answer() -> Example:
    letters = "ABCD"
    cases = [
        Case(
            asked(f"{n} + 1? A) {n} B) 7 C) {n + 1} D) 9", reference=letters[n % 4]), letters[n % 4], letters[n % 4 - 1]
        )
        for n in range(20, 20 + SIZE)
    ]
    return Example([replace(case, form="The answer is %s.") for case in cases])


def json_answer() -> Example:
    rows = [(json.dumps({"n": n, "tags": ["a", str(n)]}), json.dumps({"n": n + 1, "tags": ["a"]})) for n in range(SIZE)]
    cases = [Case(asked(f"{n}?", reference=json.loads(r)), r, w, FENCE) for n, (r, w) in enumerate(rows)]
    return Example(cases, options={"compare": True, "schema": {"type": "object", "required": ["n", "tags"]}})


def cosine_length() -> Example:
    worth = {"right_short": 1.0, "right_long": 1.0, "wrong_short": 0.0, "wrong_long": 0.0, "exceeded": 0.0}
    return replace(math_answer(), options={"max_tokens": 500_000} | worth)


def length() -> Example:
    cases = texts("Rain falls on the roof.", "Rain falls on the roof. " * 20)
    return Example(
        cases, of_text("injection", "garbage", "long", "hostile"), options={"min_tokens": 5, "max_tokens": 40}
    )


def overlong() -> Example:
    cases = texts("Rain falls on the roof.", "Rain falls on the roof. " * 20)
    skip = of_text("empty", "injection", "garbage", "long", "hostile")
    return Example(cases, skip, full=0.0, none=-0.01, options={"max_tokens": 100, "buffer": 50})


def repetition() -> Example:
    cases = texts("Rain falls on the roof; bread rises by the fire.", "Rain falls. " * 20)
    skip = of_text("empty", "injection", "garbage", "long", "hostile")
    return Example(cases, skip, full=0.0, none=-0.01, options={"unit": "words"})


def language() -> Example:
    cases = texts("The rain falls on the roof of the house.", "Der Regen fällt auf das Dach des Hauses.")
    return Example(cases, of_text("injection", "garbage", "long", "hostile"), none=0.1, options={"expected": "en"})


def instruction_following() -> Example:
    rows = catalog.get("sources", "instruction_format")(size=SIZE, seed=7)
    prompts = [to_prompt(row, Data(source="example"), number) for number, row in enumerate(rows, 1)]
    right = '"the rain falls on the roof of the house and it is good to hear"'
    cases = [Case(prompt, right, "Rain, Wind, SNOW, " * 20) for prompt in prompts]
    skip = of_text("injection", "garbage", "long", "hostile", "empty")
    return Example(cases, {name: reason for name, reason in skip.items() if name != "broken_rows"})


def mbpp() -> Example:
    rows = catalog.get("sources", "code_fix")(size=FEW, seed=7)
    given = [row["prompt"][0]["content"].split("```python\n")[1].split("```")[0] for row in rows]
    made = cases_of(rows, FENCED_CODE, lambda row: given[rows.index(row)])
    return Example(made)


def humaneval() -> Example:
    head = 'def add_{n}(x):\n    """Add {n} to x."""\n'
    test = "def check(candidate):\n    assert candidate(1) == {one}\n    assert candidate(-3) == {other}\n"
    cases = []
    for n in range(1, FEW + 1):
        columns = {"prompt": head.format(n=n), "entry_point": f"add_{n}", "test": test.format(one=n + 1, other=n - 3)}
        right, wrong = (f"def add_{n}(x):\n    return x + {m}\n" for m in (n, n + 1))
        cases.append(Case(asked(f"Complete:\n{columns['prompt']}", columns=columns), right, wrong, FENCED_CODE))
    return Example(cases)


def code_stdio() -> Example:
    cases = []
    for n in range(1, FEW + 1):
        tests = [{"input": f"{x}\n", "output": f"{x + n}\n"} for x in (1, 20, -7)]
        right, wrong = (f"print(int(input()) + {m})\n" for m in (n, n + 1))
        cases.append(Case(asked(f"Add {n} to the input.", columns={"tests": tests}), right, wrong, FENCED_CODE))
    return Example(cases)


def reasoning_gym() -> Example:
    rows = catalog.get("sources", "reasoning_gym")(task="chain_sum", size=SIZE, seed=7)
    return Example(cases_of(rows, THOUGHT, next_number))


def scripted_feedback() -> Example:
    return replace(of_rows("arithmetic_chain", form=THOUGHT), none=0.2)  # good form alone is worth 2 of 10


def stored_feedback() -> Example:
    skip = of_text(
        "wrong", "empty", "garbage", "injection", "long", "hostile", why="reads what is stored, never the text"
    )
    stored = Completion("Bread rises.", feedback="Right and short.", score=10.0)
    return Example([Case(asked(f"Question {n}?"), "Bread rises.", "No.", stored=stored) for n in range(SIZE)], skip)


def of_text(*more: str, why: str = NO_REFERENCE) -> dict[str, str]:
    """The checks that say nothing about a scorer of the text alone, and `more` of them."""
    return dict.fromkeys((*WHOLE_TEXT, *more), why)


def of_rows(
    source: str, *, form: str, wrong: Callable[[Row], str] | None = None, options: dict[str, Any] | None = None
) -> Example:
    """Rows of a catalog source, answered by their references."""
    rows = catalog.get("sources", source)(size=SIZE, seed=7)
    return Example(cases_of(rows, form, wrong or next_number), options=options or {})


def cases_of(rows: Sequence[Row], form: str, wrong: Callable[[Row], str]) -> list[Case]:
    made = [to_prompt(row, Data(source="example"), number) for number, row in enumerate(rows, 1)]
    return [Case(one, str(one.reference), wrong(row), form) for one, row in zip(made, rows, strict=True)]


def texts(right: str, wrong: str) -> list[Case]:
    """Prompts without reference that one text suits and another does not."""
    return [Case(asked(f"Write text number {n}."), right, wrong) for n in range(SIZE)]


def asked(question: str, **fields: Any) -> Prompt:
    return Prompt(id=question, messages=({"role": "user", "content": question},), **fields)


def next_number(row: Row) -> str:
    return str(int(row["reference"]) + 1)


def swapped(row: Row) -> str:
    """The list with its ends changed round, and another last member."""
    first, *middle, last = row["reference"].split()
    return " ".join([last, *middle, first + "1"])


def another_value(row: Row) -> str:
    """An expression with the right numbers and a wrong value."""
    add, multiply = (sign.join(map(str, row["nums"])) for sign in (" + ", " * "))
    return multiply if sum(row["nums"]) == row["target"] else add

"""Small tasks with an exact check, generated: nothing to download, nothing to leak, as hard as the options say.

Like `llmrl.data.tasks`, every source is fixed by its seed and options and splits its problems by their text into
'train' and 'test', a tenth: the two never share a problem.
"""

from __future__ import annotations

import random
from collections.abc import Callable, Iterator
from fractions import Fraction
from itertools import islice

from llmrl.data.read import Row
from llmrl.data.tasks import in_split, turn
from llmrl.errors import DataError

SYLLABLES = ["ba", "co", "di", "fu", "ga", "le", "mi", "no", "pe", "ra", "sto", "tri", "vel", "win", "zor", "eel"]
PAIRS = {"(": ")", "[": "]", "{": "}"}
DIGITS = "0123456789abcdefghijklmnopqrstuvwxyz"
TOPICS = ["rain", "a train ride", "bread", "the moon", "bicycles", "a lighthouse", "chess", "tea", "winter", "bees"]
OPERATIONS = "+-*/"
ANSWER = "Write only {what} between <answer> and </answer>."
TRIES = 10_000  # draws without a new problem of the split, before the options are refused


def countdown(
    *, size: int = 4096, seed: int = 0, split: str = "train", num_numbers: int = 4, largest: int = 20
) -> list[Row]:
    """Reach a target with + - * / from given numbers, each used exactly once. For the scorer `countdown`.

    Columns `nums` and `target` as in the published Countdown data; the reference is one solution. Targets are whole
    numbers of 1 to 100 that no single number gives away.
    """
    at_least(2, num_numbers=num_numbers, largest=largest)

    def problem(rng: random.Random) -> Row | None:
        numbers = [rng.randint(1, largest) for _ in range(num_numbers)]
        solution, target = combined(rng, numbers)
        if target is None or not 1 <= target <= 100 or target in numbers:
            return None
        text = f"Use the numbers {numbers} and + - * / to make {target}. Use each number exactly once; you may use "
        text += "parentheses. " + ANSWER.format(what="the expression")
        return row(text, solution) | {"nums": numbers, "target": int(target)}

    return rows(problem, size, seed, split)


def sorting(
    *, size: int = 4096, seed: int = 0, split: str = "train", num_numbers: int = 6, largest: int = 99
) -> list[Row]:
    """Sort whole numbers, upwards or downwards. For the scorer `exact_answer`."""
    at_least(1, num_numbers=num_numbers, largest=largest)

    def problem(rng: random.Random) -> Row:
        numbers, downwards = [rng.randint(0, largest) for _ in range(num_numbers)], rng.random() < 0.5
        way = "largest to smallest" if downwards else "smallest to largest"
        text = f"Sort from {way}: {shown(numbers)}. " + ANSWER.format(what="the numbers, with a space between them,")
        return row(text, shown(sorted(numbers, reverse=downwards)))

    return rows(problem, size, seed, split)


def letter_count(*, size: int = 4096, seed: int = 0, split: str = "train", num_syllables: int = 4) -> list[Row]:
    """How often a letter stands in a made-up word. For the scorer `exact_answer`."""
    at_least(1, num_syllables=num_syllables)

    def problem(rng: random.Random) -> Row:
        word = "".join(rng.choice(SYLLABLES) for _ in range(num_syllables))
        letter = rng.choice(word if rng.random() < 0.9 else "xyq")
        text = f"How many times does the letter {letter} occur in {word}? " + ANSWER.format(what="the number")
        return row(text, str(word.count(letter)))

    return rows(problem, size, seed, split)


def bracket_closing(*, size: int = 4096, seed: int = 0, split: str = "train", length: int = 12) -> list[Row]:
    """The brackets that close what a text of `length` brackets leaves open. For the scorer `exact_answer`."""
    at_least(1, length=length)

    def problem(rng: random.Random) -> Row | None:
        text, still_open = "", []
        for _ in range(length):
            if still_open and rng.random() < 0.45:
                text += PAIRS[still_open.pop()]
            else:
                still_open.append(rng.choice(list(PAIRS)))
                text += still_open[-1]
        if not still_open:
            return None
        question = f"Close every bracket that is still open in {text} in the right order. "
        closing = "".join(PAIRS[bracket] for bracket in reversed(still_open))
        return row(question + ANSWER.format(what="the missing closing brackets"), closing)

    return rows(problem, size, seed, split)


def base_conversion(*, size: int = 4096, seed: int = 0, split: str = "train", largest: int = 999) -> list[Row]:
    """A number written in another base, of 2 to 16. For the scorer `exact_answer`."""
    at_least(1, largest=largest)

    def problem(rng: random.Random) -> Row:
        value, (old, new) = rng.randint(0, largest), rng.sample([2, 3, 5, 8, 10, 16], 2)
        text = f"Write {in_base(value, old)}, a number in base {old}, in base {new}. Digits above 9 are lowercase letters. "
        return row(text + ANSWER.format(what="its digits"), in_base(value, new))

    return rows(problem, size, seed, split)


def instruction_format(
    *, size: int = 4096, seed: int = 0, split: str = "train", num_instructions: int = 2, words: int = 60
) -> list[Row]:
    """Write on a topic under checkable instructions, in IFEval's columns. For the scorer `instruction_following`.

    num_instructions: 1 to 4 of: at most so many words (drawn up to `words`), no commas, all lowercase, in quotation
    marks. There is no reference: the instructions are the check.
    """
    at_least(1, num_instructions=num_instructions)
    at_least(20, words=words)
    kinds = 4
    if num_instructions > kinds:
        raise DataError(f"num_instructions is {num_instructions}; expected 1 to {kinds}.")

    def problem(rng: random.Random) -> Row:
        most = rng.randint(20, words)
        known = [
            (
                "length_constraints:number_words",
                {"relation": "less than", "num_words": most},
                f"fewer than {most} words",
            ),
            ("punctuation:no_comma", {}, "no commas"),
            ("change_case:english_lowercase", {}, "English in lowercase letters only"),
            ("startend:quotation", {}, "double quotation marks around the whole response"),
        ]
        chosen = rng.sample(known, num_instructions)
        text = f"Write about {rng.choice(TOPICS)}. Use {', '.join(said for _, _, said in chosen)}."
        return {"prompt": turn("user", text)} | {
            "instruction_id_list": [name for name, _, _ in chosen],
            "kwargs": [arguments for _, arguments, _ in chosen],
        }

    return rows(problem, size, seed, split)


def rows(problem: Callable[[random.Random], Row | None], size: int, seed: int, split: str) -> list[Row]:
    """`size` problems of the split, drawn by `seed`; None is drawn again."""
    return list(islice(drawn(problem, random.Random(seed), split), size))


def drawn(problem: Callable[[random.Random], Row | None], rng: random.Random, split: str) -> Iterator[Row]:
    wanted = in_split(split)
    while True:
        for _ in range(TRIES):
            found = problem(rng)
            if found is not None and wanted(found["prompt"][0]["content"]):
                break
        else:
            raise DataError(f"no {split} problem in {TRIES:,} draws. Options this narrow leave none: widen them.")
        yield found


def row(text: str, reference: str) -> Row:
    return {"prompt": turn("user", text), "reference": reference}


def at_least(least: int, **options: int) -> None:
    """DataError for an option below `least`."""
    for name, value in options.items():
        if value < least:
            raise DataError(f"{name} is {value}; expected at least {least}.")


def combined(rng: random.Random, numbers: list[int]) -> tuple[str, Fraction | None]:
    """(an expression that uses every number once, its value; None where it is no whole number)."""
    terms = [(str(number), Fraction(number)) for number in numbers]
    while len(terms) > 1:
        (a, left), (b, right) = (terms.pop(rng.randrange(len(terms))) for _ in range(2))
        operation = rng.choice(OPERATIONS)
        if operation == "/" and right == 0:
            return "", None
        value = {"+": left + right, "-": left - right, "*": left * right}.get(operation)
        terms.append((f"({a} {operation} {b})", left / right if value is None else value))
    expression, value = terms[0]
    return expression[1:-1], value if value.denominator == 1 else None


def in_base(value: int, base: int) -> str:
    """The digits of a whole number in a base of 2 to 36."""
    digits = ""
    while value or not digits:
        value, digit = divmod(value, base)
        digits = DIGITS[digit] + digits
    return digits


def shown(numbers: list[int]) -> str:
    return " ".join(map(str, numbers))

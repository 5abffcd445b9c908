"""How other harnesses read and normalise answers, written anew from their behaviour; verdicts agree with theirs.

Oddities are kept on purpose: a number measured under a harness's name has to be that harness's number. Sources:
lm-eval 0.4.13 (gsm8k 3.0, hendrycks_math 1.0, minerva_math 3.1) and verl 0.9.1 (reward_score/*).
"""

from __future__ import annotations

import re

HASHES = re.compile(r"#### (-?[0-9.,]+)")
FLEXIBLE = re.compile(r"-?[$0-9.,]{2,}|-?[0-9]+")
BRACE = re.compile(r"[{}]")
ANSWER = re.compile(r"Answer\s*:\s*([^\n]+)", re.IGNORECASE)
INVALID = "[invalid]"
VERL_GSM8K_TAIL, DAPO_TAIL, DAPO_BOX_TAIL = 300, 300, 100  # characters

MINERVA_BEFORE, MINERVA_AFTER = "Final Answer: The final answer is", " I hope it is correct"
MINERVA_INVALID = "[invalidanswer]"

# what Minerva's appendix D (arXiv:2206.14858) replaces and removes, in its order
REPLACED = [
    ("an ", ""), ("a ", ""), (".$", "$"), ("\\$", ""), ("\\ ", ""), (" ", ""), ("mbox", "text"),
    (",\\text{and}", ","), ("\\text{and}", ","), ("\\text{m}", "\\text{}"),
]  # fmt: skip
UNITS_BEFORE_FT = ["square", "ways", "integers", "dollars", "mph", "inches"]
UNITS = [
    "hours", "km", "units", "\\ldots", "sue", "points", "feet", "minutes", "digits", "cents", "degrees", "cm", "gm",
    "pounds", "meters", "meals", "edges", "students", "childrentickets", "multiples", "\\text{s}", "\\text{.}",
    "\\text{\ns}", "\\text{}^2", "\\text{}^3", "\\text{\n}", "\\text{}", "\\mathrm{th}", "^\\circ", "^{\\circ}", "\\;",
    ",\\!", "{,}", '"', "\\dots",
]  # fmt: skip
MINERVA_REMOVED = [*UNITS_BEFORE_FT, "ft", *UNITS]
DAPO_REMOVED = [*UNITS_BEFORE_FT, *UNITS]
COMMAND = re.compile(r"(\\[a-zA-Z]+)")
WRAPPERS = [
    (re.compile(r"(.*?)(\$)(.*?)(\$)(.*)"), r"$\3$"),
    (re.compile(r"\\text\{(.*?)\}"), r"\1"),
    (re.compile(r"\\textbf\{(.*?)\}"), r"\1"),
    (re.compile(r"\\overline\{(.*?)\}"), r"\1"),
    (re.compile(r"\\boxed\{(.*)\}"), r"\1"),
]
THOUSANDS = re.compile(r"-?\d{1,3}(,\d{3})+")


def first_hashes(text: str) -> str | None:
    """The number after the first '#### '."""
    match = HASHES.search(text)
    return match.group(1) if match else None


def last_flexible(text: str) -> str | None:
    """The last thing made of digits, points, commas and dollar signs."""
    found = None
    for match in FLEXIBLE.finditer(text):
        found = match
    return found.group() if found else None


def lm_eval_gsm8k(text: str) -> str:
    """What lm-eval's exact_match compares: no commas or dollar signs, nothing up to '#### ', no closing period."""
    text = text.replace(",", "").replace("$", "").rpartition("#### ")[2]
    if text.endswith(".\n"):
        text = text[:-2] + "\n"
    return text.removesuffix(".").lower()


def verl_hashes(text: str) -> str | None:
    """The number after the last '#### ' of the last 300 characters."""
    found = HASHES.findall(text[-VERL_GSM8K_TAIL:])
    return found[-1] if found else None


def hendrycks_box(text: str) -> str | None:
    """What the last box holds, after Hendrycks et al. (arXiv:2103.03874); the form without braces wins anywhere."""
    if "\\boxed " in text:
        return text.rpartition("\\boxed ")[2].partition("$")[0]
    start = text.rfind("\\boxed")
    start = start if start >= 0 else text.rfind("\\fbox")
    if start < 0 or not text.startswith("\\boxed{", start):
        return None  # a frame box is found and then refused
    end = closing_brace(text, start)
    return None if end is None else text[start + len("\\boxed{") : end]


def closing_brace(text: str, start: int) -> int | None:
    """Where the first group after `start` closes."""
    depth = 0
    for match in BRACE.finditer(text, start):
        closing = match.group() == "}"
        depth += -1 if closing else 1
        if closing and depth == 0:
            return match.start()
    return None


def between_dollars(text: str) -> str:
    """What stands between the first and the last dollar sign; all of it where there are fewer than two."""
    first, last = text.find("$"), text.rfind("$")
    return text[first + 1 : last] if last > first else text


def hendrycks_equal(answer: str, reference: str, *, verl: bool = False) -> bool:
    """Equality of the normalised strings, or of the strings themselves where one cannot be normalised."""
    try:
        return hendrycks(answer, verl=verl) == hendrycks(reference, verl=verl)
    except (ValueError, IndexError):
        return answer == reference


def hendrycks(text: str, *, verl: bool = False) -> str:
    """The normal form of MATH's own grader. Raises ValueError or IndexError for text it cannot treat.

    verl: its variant, in which what stands around a slash need not be integers.
    """
    text = text.replace("\n", "").replace("\\!", "").replace("\\\\", "\\").replace("tfrac", "frac")
    text = text.replace("dfrac", "frac").replace("\\left", "").replace("\\right", "")
    text = text.replace("^{\\circ}", "").replace("^\\circ", "").replace("\\$", "")
    if "\\text{ " in text:
        text, _ = text.split("\\text{ ")  # ValueError for a second one
    text = text.replace("\\\\%", "") if verl else text
    text = text.replace("\\%", "").replace(" .", " 0.").replace("{.", "{0.")
    if not text:
        return text
    text = "0" + text if text[0] == "." else text
    sides = text.split("=")
    if len(sides) == 2 and len(sides[0]) <= 2:
        text = sides[1]
    text = braced_fractions(braced_roots(text).replace(" ", ""))
    return "\\frac{1}{2}" if text == "0.5" else slash(text, lenient=verl)


def braced_roots(text: str) -> str:
    """'\\sqrt3' -> '\\sqrt{3}'. Raises IndexError where nothing follows."""
    head, *rest = text.split("\\sqrt")
    return head + "".join("\\sqrt" + (part if part[0] == "{" else f"{{{part[0]}}}{part[1:]}") for part in rest)


def braced_fractions(text: str) -> str:
    """'\\frac12' -> '\\frac{1}{2}', all or none. Raises IndexError where nothing follows."""
    head, *rest = text.split("\\frac")
    for part in rest:
        head += "\\frac"
        if part[0] == "{":
            head += part
        elif len(part) < 2:
            return text
        elif part[1] == "{":
            head += f"{{{part[0]}}}{part[1:]}"
        else:
            head += f"{{{part[0]}}}{{{part[1]}}}{part[2:]}"
    return head


def slash(text: str, lenient: bool) -> str:
    """'1/2' -> '\\frac{1}{2}' for plain integers. Raises ValueError for others unless `lenient`."""
    sides = text.split("/")
    if len(sides) != 2:
        return text
    try:
        top, bottom = (int(side) for side in sides)
    except ValueError:
        if lenient:
            return text
        raise
    return f"\\frac{{{top}}}{{{bottom}}}" if text == f"{top}/{bottom}" else text


def minerva_sentence(text: str) -> str | None:
    """What stands between 'Final Answer: The final answer is' and the hope that it is correct, on one line."""
    for line in (text + MINERVA_AFTER.lstrip() + ".").split("\n"):
        start = line.find(MINERVA_BEFORE)
        if start < 0:
            continue
        start += len(MINERVA_BEFORE)
        end = line.find(MINERVA_AFTER, start + 1)
        if end >= 0 and end + len(MINERVA_AFTER) < len(line):
            return line[start : end - 1].strip()
    return None


def minerva(text: str) -> str:
    """Minerva's normal form as lm-eval has it: units go while spaces still part words, commands stay whole."""
    text = text.split("=")[-1]
    for unit in MINERVA_REMOVED:
        if unit.isalpha():
            text = re.sub(rf"(?<!\\)\b{unit}\b", "", text)
    for before, after in REPLACED:
        text = text.replace(before, after)
    for unit in MINERVA_REMOVED:
        if unit.isalpha():
            parts = COMMAND.split(text)
            parts[::2] = [part.replace(unit, "") for part in parts[::2]]
            text = "".join(parts)
        else:
            text = text.replace(unit, "")
    text = unwrapped(text)
    text = re.sub(r"frac([^{])(.)", r"frac{\1}{\2}", text)
    text = re.sub(r"sqrt(\[[^\]]*\])(\w)", r"sqrt\1{\2}", text)
    text = re.sub(r"sqrt(?!\[)([^{])", r"sqrt{\1}", text).replace("$", "")
    return text.replace(",", "") if THOUSANDS.fullmatch(text) else text


def dapo(text: str) -> str:
    """Minerva's normal form as DAPO (arXiv:2503.14476) and verl have it."""
    text = text.split("=")[-1]
    for before, after in REPLACED:
        text = text.replace(before, after)
    for unit in DAPO_REMOVED:
        text = text.replace(unit, "")
    text = unwrapped(text)
    text = re.sub(r"frac([^{])(.)", r"frac{\1}{\2}", text)
    text = re.sub(r"sqrt([^{])", r"sqrt{\1}", text).replace("$", "")
    digits = text.replace(",", "")
    return (digits if digits.isdigit() else text).strip()


def unwrapped(text: str) -> str:
    """Without the dollar signs, fonts, bars and boxes around parts of it."""
    for pattern, replacement in WRAPPERS:
        text = pattern.sub(replacement, text)
    return text


def dapo_answer(text: str) -> str | None:
    """The line after the last 'Answer:' of the last 300 characters."""
    found = ANSWER.findall(text[-DAPO_TAIL:])
    return found[-1] if found else None


def dapo_box(text: str) -> str | None:
    """What the last \\boxed{} that opens in the last 100 characters holds."""
    text = text[-DAPO_BOX_TAIL:]
    start = text.rfind("\\boxed{")
    end = closing_brace(text, start) if start >= 0 else None
    return None if end is None else text[start + len("\\boxed{") : end]

"""Which part of a text math-verify takes for the answer, without its path through parse_expr."""

from __future__ import annotations

import re
from itertools import groupby

from reward_models.extraction import Found
from reward_models.mathematics import kernel
from reward_models.mathematics.refusals import refusal

BOX_COUNT = 6  # parts that math-verify joins


def search(text: str) -> Found | None:
    """The rightmost match that parses, of the strongest pattern that has one; for want of it the first that does not.

    Patterns and their order are math-verify's. A text whose patterns take too long to search has no answer.
    """
    kernel.library()
    try:
        with kernel.deadline(kernel.SECONDS):
            return searched(text)
    except kernel.TooSlow:
        return None


def searched(text: str) -> Found | None:
    """`search` without limits."""
    parser = kernel.library()
    targets = [parser.LatexExtractionConfig(), parser.ExprExtractionConfig()]
    patterns = [
        (priority, pattern, target)
        for found, target in parser.get_extraction_regexes(targets)
        for pattern, priority in found
    ]
    patterns.sort(key=lambda row: row[0])
    fallback = None
    for _, rows in groupby(patterns, key=lambda row: row[0]):
        matches = [(match, target) for _, pattern, target in rows for match in pattern.finditer(text)]
        matches.sort(key=lambda row: (row[0].end(), -row[0].start()), reverse=True)
        for match, target in matches:
            is_latex = isinstance(target, parser.LatexExtractionConfig)
            answer = latex_of(match) if is_latex else plain_of(match)
            if refusal(answer) or kernel.expression(answer, units=is_latex) is not None:
                return Found(answer, "latex" if is_latex else "plain")
            fallback = fallback or (Found(answer, "unread") if answer else None)
    return fallback


def latex_of(match: re.Match[str]) -> str:
    """The LaTeX of all parts of a match, boxes opened, parts joined by commas."""
    from latex2sympy2_extended.math_normalization import extract_boxed_content

    parts = []
    for place in ("first", *(f"next{i}" for i in range(1, BOX_COUNT))):
        groups = {name: value for name, value in match.groupdict().items() if name.startswith(f"{place}_") and value}
        found = next(((name, value) for name, value in groups.items() if "latex" in name), None)
        if found is None:
            continue
        mode = "last" if found[0].endswith("latexBoxed") else "all"
        part = extract_boxed_content(found[1], mode=mode)
        parts.append(part + ("\\%" if f"{place}_percent" in groups else ""))
    return ",".join(parts)


def plain_of(match: re.Match[str]) -> str:
    """A number without separators and leading zeros, or an expression, as LaTeX."""
    groups = match.groupdict()
    whole = next((value for name, value in groups.items() if name.startswith("integer") and value), "")
    decimal = next((value for name, value in groups.items() if name.startswith("decimal") and value), "")
    if whole or decimal:
        whole = whole.replace(",", "").replace(" ", "").lstrip("0") or "0"
        return whole + decimal.replace(",", ".") + ("\\%" if groups.get("percent") else "")
    return (groups.get("expr") or "").replace("\n", " ")

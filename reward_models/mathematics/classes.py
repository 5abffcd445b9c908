"""Which of several responses give the same answer, for votes and diversity."""

from __future__ import annotations

from collections.abc import Sequence

from reward_models.extraction import Found
from reward_models.mathematics.kernel import BrokenReference
from reward_models.mathematics.protocols import DEFAULT, Protocol, protocol_of


def answer_classes(texts: list[str], protocol: str = DEFAULT) -> list[int | None]:
    """For each response the index of its class of equal answers, in order of first sight; None without an answer.

    An answer belongs to the first class whose first member it equals under the protocol. One that cannot be compared
    with the others is a class of its own. Raises ValueError for an unknown protocol.
    """
    rules = protocol_of(protocol)
    return classes_of([rules.read(text) for text in texts], rules)


def classes_of(found: Sequence[Found | None], rules: Protocol) -> list[int | None]:
    """`answer_classes` of answers that have been read."""
    firsts: list[tuple[Found, bool]] = []  # the first member of each class, whether others are compared with it
    known: dict[Found, int] = {}
    classes: list[int | None] = []
    for answer in found:
        if answer is not None and answer not in known:
            known[answer] = len(firsts)
            comparable = True
            for index, (first, open_to_others) in enumerate(firsts):
                if not open_to_others:
                    continue
                try:
                    equal, by = rules.equal(answer, first.text)
                except BrokenReference:  # the first member is the one that cannot be compared
                    firsts[index] = (first, False)
                    continue
                if equal:
                    known[answer] = index
                    break
                if by.startswith("refused"):
                    comparable = False
                    break
            if known[answer] == len(firsts):
                firsts.append((answer, comparable))
        classes.append(None if answer is None else known[answer])
    return classes

"""Is the answer that most samples agree on right?"""

from __future__ import annotations

from collections import Counter

from llmrl.limits import limits
from llmrl.types import Group, Score
from reward_models.mathematics.classes import classes_of
from reward_models.mathematics.protocols import DEFAULT, ProtocolName, protocol_of, written


@limits(seconds=60.0, memory_gb=0.5, confined=True, preload=("math_verify", "math_verify.grader", "math_verify.parser"))
def majority_vote(group: Group, *, protocol: ProtocolName = DEFAULT) -> list[Score]:
    """1.0 for every rollout if the answer that most of its siblings gave is right, else 0.0 (maj@k).

    protocol: as in math_answer; it also says which answers are the same. Ties go to the answer given first. A group
    without any answer scores 0.0. evidence: the rollout's class of equal answers, None without an answer; whether its
    own answer is right; whether the majority's is.
    Raises ValueError for an unknown protocol and for a reference that is missing or cannot be compared.
    """
    rules = protocol_of(protocol)
    expected = rules.expect(written(group.prompt.reference))
    found = [rules.read(rollout.text) for rollout in group.rollouts]
    classes = classes_of(found, rules)
    votes = Counter(one for one in classes if one is not None)
    first = {one: found[classes.index(one)] for one in votes}
    right = {one: rules.equal(answer, expected)[0] for one, answer in first.items()}
    won = bool(votes) and right[votes.most_common(1)[0][0]]  # most_common keeps the order of first sight
    return [
        Score(
            float(won),
            evidence={"protocol": protocol, "class": one, "correct": right.get(one, False), "majority": won},
        )
        for one in classes
    ]

"""Is the final answer right?"""

from __future__ import annotations

from typing import Any

from llmrl.limits import limits
from llmrl.types import Prompt, Rollout, Score
from reward_models.mathematics.protocols import DEFAULT, ProtocolName, final_part, protocol_of, written

SHOWN = 200  # characters of an answer kept in the record


@limits(seconds=3.0, memory_gb=0.5, confined=True, preload=("math_verify", "math_verify.grader", "math_verify.parser"))
def math_answer(prompt: Prompt, rollout: Rollout, *, protocol: ProtocolName = DEFAULT) -> Score:
    """1.0 if the final answer equals prompt.reference under the protocol, else 0.0.

    protocol: how the answer is found and when it is equal, a name out of reward_models.mathematics.protocols.PROTOCOLS.
    The default reads the last \\boxed{}, for want of one '#### ', <answer> tags or 'the answer is', and compares as
    strings, exact numbers or by algebra. An answer that is refused (a tower of exponents, 4,096 characters, program
    code) or that cannot be compared within 0.4 s is wrong; evidence says so under 'by'. The feedback says what was
    read and whether it is right, never what would have been.
    Raises ValueError for an unknown protocol and for a reference that is missing or cannot be compared.
    """
    rules = protocol_of(protocol)
    expected = rules.expect(written(prompt.reference))
    found = rules.read(rollout.text)
    evidence = {"protocol": protocol, "read": None, "expected": expected[:SHOWN], "how": None, "by": None}
    if found is None:
        return Score(0.0, feedback="There is no final answer in the response.", evidence=evidence | {"correct": False})
    correct, by = rules.equal(found, expected)
    read = found.text[:SHOWN]
    evidence |= {"read": read, "how": found.how, "by": by, "correct": correct}
    if by.startswith("refused"):
        feedback = f"The final answer {read} cannot be compared ({by.removeprefix('refused: ')})."
    else:
        feedback = f"The final answer {read} is {'correct' if correct else 'wrong'}."
    return Score(float(correct), feedback=feedback, evidence=evidence)


def reference_answer(reference: Any) -> str:
    """The answer in a reference: a number, a string, a worked solution that ends with '#### answer' or holds a box."""
    return final_part(written(reference))

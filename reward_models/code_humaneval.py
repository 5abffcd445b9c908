"""HumanEval: a function against its own test."""

from __future__ import annotations

import ast

from llmrl.limits import limits
from llmrl.types import Prompt, Rollout, Score
from reward_models.sandbox.calls import as_calls, defined
from reward_models.sandbox.judge import Verdict, judge_calls, judge_tests
from reward_models.sandbox.response import Unreadable, blocks, continued, program
from reward_models.sandbox.score import Extraction, limits_of, scored, text_of, unread
from reward_models.sandbox.session import Limits

PROTOCOL = "llmrl/humaneval@1"


@limits(seconds=120, memory_gb=None)
def humaneval(
    prompt: Prompt,
    rollout: Rollout,
    *,
    extraction: Extraction = "auto",
    timeout: float = 10.0,
    memory_gb: float = 1.0,
    backend: str = "auto",
    fraction: bool = False,
) -> Score:
    """1.0 if the function passes the test of its HumanEval row, else 0.0 (arXiv:2107.03374).

    Reads the columns test, entry_point and prompt (the function's head; for want of the column, the raw text of the
    prompt or the last code block of the question). extraction: what of the response is code; 'auto' takes the last fenced
    block of a chat's answer, or all of it where there is none, and after a raw text the completion, cut at the paper's
    stop sequences. timeout: seconds for the whole test. memory_gb: address space. backend: 'auto', 'bubblewrap',
    'landlock' or the address of a SandboxFusion server. fraction: the share of assertions that hold, where the test is a
    list of calls.
    Raises ValueError for a row without these columns or with a test that does not run, SandboxError without a sandbox.
    """
    test, entry, head = text_of(prompt, "test"), text_of(prompt, "entry_point"), stub(prompt)
    resources = limits_of(timeout, memory_gb)
    if not entry.isidentifier():
        raise ValueError(f"entry_point is {entry!r:.80}; expected the name of a function")
    try:
        code = program(rollout.text, extraction, is_chat=prompt.messages is not None)
    except Unreadable as reason:
        return unread(str(reason), PROTOCOL)
    verdict = judged(continued(head, code, entry), head, test, entry, resources, backend, every=fraction)
    return scored(verdict, PROTOCOL, fraction=fraction)


def stub(prompt: Prompt) -> str:
    """The head of the function: imports, helpers, signature and docstring."""
    given = prompt.columns.get("prompt")
    if isinstance(given, str):
        return given
    if prompt.messages is None:
        return prompt.text or ""
    found = blocks(prompt.question())
    return f"{found[-1]}\n" if found else ""


def judged(source: str, head: str, test: str, entry: str, resources: Limits, backend: str, *, every: bool) -> Verdict:
    """The verdict by calls where the test is nothing but calls, else by running the test with a stand-in."""
    module = ast.parse(test)
    checks = [node for node in module.body if isinstance(node, ast.FunctionDef) and node.name == "check"]
    if len(checks) != 1 or len(checks[0].args.args) != 1:
        raise ValueError(f"the test of {entry} has no check(candidate); expected HumanEval's form")
    name = checks[0].args.args[0].arg
    calls = as_calls(checks[0].body, defined(module) | {entry})
    if not calls:
        return judge_tests(source, head, test, entry, resources, backend)
    return judge_calls(source, f"{name} = {entry}", calls, resources, backend, every=every)

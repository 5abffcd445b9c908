"""The benchmarks. Smaller ones take more samples, so that sampling noise stays below that of the problems."""

from __future__ import annotations

from typing import Any

from eval.published import ASK, function, problem, question, task
from llmrl.config import Named
from llmrl.evaluation import Benchmark
from llmrl.types import Sampling

BOXED = "llmrl/boxed@1"
BOXED_SCORERS: list[Named] = [{"name": name, "protocol": BOXED} for name in ("math_answer", "majority_vote")]
ASKED = ASK.replace("{}", "{{}}")  # {{}} fills in as {}
LONGEST = {"max_prompt_tokens": 8192}  # a problem refused for its length would be another benchmark
WHOLE = "Answer with one ```python code block that holds the whole program."


def gsm8k() -> Benchmark:
    """Grade-school word problems: 1,319, one greedy answer each (arXiv:2110.14168)."""
    data = {"source": "openai/gsm8k", "subset": "main", "split": "test", "columns": {"reference": "answer"}}
    sampling = Sampling(max_tokens=1024, temperature=0.0)
    return Benchmark(BOXED, data | LONGEST | {"user": "{question}" + ASKED}, BOXED_SCORERS, 1, sampling, 1319, question)


def math500() -> Benchmark:
    """500 competition problems out of MATH (arXiv:2103.03874, the subset of arXiv:2305.20050)."""
    return mathematics("HuggingFaceH4/MATH-500", "test", 8, 4096, 500)


def aime24() -> Benchmark:
    """The 30 problems of the American Invitational Mathematics Examination, 2024; answers are integers to 999."""
    return mathematics("HuggingFaceH4/aime_2024", "train", 32, 32768, 30)


def aime25() -> Benchmark:
    """The 30 problems of the American Invitational Mathematics Examination, 2025; answers are integers to 999."""
    return mathematics("math-ai/aime25", "test", 32, 32768, 30)


def mathematics(source: str, split: str, num_samples: int, max_tokens: int, num_rows: int) -> Benchmark:
    """Problems whose answers are asked for in a box, sampled as reasoning models usually are."""
    data = {"source": source, "split": split, "columns": {"reference": "answer"}, "user": "{problem}" + ASKED}
    sampling = Sampling(max_tokens=max_tokens, temperature=0.6, top_p=0.95)
    return Benchmark(BOXED, data | LONGEST, BOXED_SCORERS, num_samples, sampling, num_rows, problem)


def humaneval() -> Benchmark:
    """164 Python functions to write from head and docstring, asked as a chat, greedy (arXiv:2107.03374)."""
    user = f"Complete the Python function below. {WHOLE}\n\n```python\n{{prompt}}```"
    return code("openai/openai_humaneval", {"user": user}, "llmrl/humaneval-chat@1", "humaneval", 164, function)


def humaneval_completion() -> Benchmark:
    """HumanEval for base models: the prompt is the start of the program and the answer goes on from there, greedy."""
    return code("openai/openai_humaneval", {}, "llmrl/humaneval-completion@1", "humaneval", 164, function)


def mbpp() -> Benchmark:
    """The 500 test problems of Mostly Basic Python Problems, asked as a chat with their asserts (arXiv:2108.07732)."""
    user = f"{{text}} {WHOLE}\n\nIt has to pass these tests:\n\n{{asserts}}"
    return code(
        "google-research-datasets/mbpp", {"subset": "full", "user": user}, "llmrl/mbpp-chat@1", "mbpp", 500, task
    )


def code(source: str, data: dict[str, Any], protocol: str, scorer: str, num_rows: int, adapt: Any) -> Benchmark:
    """Programs that are run against the benchmark's own tests, one greedy answer each."""
    sampling = Sampling(max_tokens=1024, temperature=0.0)
    return Benchmark(
        protocol, {"source": source, "split": "test"} | LONGEST | data, [scorer], 1, sampling, num_rows, adapt
    )

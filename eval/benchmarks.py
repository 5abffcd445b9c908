"""Mathematics benchmarks. Smaller ones take more samples, so that sampling noise stays below that of the problems."""

from __future__ import annotations

from llmrl.evaluation import Benchmark
from llmrl.types import Sampling

PROTOCOL = "llmrl/boxed@1"
ASK = "\nPlease reason step by step, and put your final answer within \\boxed{{}}."  # {{}} fills in as {}
SCORERS = ["math_answer"]


def gsm8k() -> Benchmark:
    """Grade-school word problems: 1,319, one greedy answer each (arXiv:2110.14168)."""
    data = {"source": "openai/gsm8k", "subset": "main", "split": "test", "columns": {"reference": "answer"}}
    sampling = Sampling(max_tokens=1024, temperature=0.0)
    return Benchmark(PROTOCOL, data | {"user": "{question}" + ASK}, SCORERS, 1, sampling)


def math500() -> Benchmark:
    """500 competition problems out of MATH (arXiv:2103.03874, the subset of arXiv:2305.20050)."""
    data = {"source": "HuggingFaceH4/MATH-500", "split": "test", "columns": {"reference": "answer"}}
    return Benchmark(PROTOCOL, data | {"user": "{problem}" + ASK}, SCORERS, 8, reasoning(4096))


def aime24() -> Benchmark:
    """The 30 problems of the American Invitational Mathematics Examination, 2024; answers are integers to 999."""
    data = {"source": "HuggingFaceH4/aime_2024", "split": "train", "columns": {"reference": "answer"}}
    return Benchmark(PROTOCOL, data | {"user": "{problem}" + ASK}, SCORERS, 32, reasoning(32768))


def aime25() -> Benchmark:
    """The 30 problems of the American Invitational Mathematics Examination, 2025; answers are integers to 999."""
    data = {"source": "math-ai/aime25", "split": "test", "columns": {"reference": "answer"}}
    return Benchmark(PROTOCOL, data | {"user": "{problem}" + ASK}, SCORERS, 32, reasoning(32768))


def reasoning(max_tokens: int) -> Sampling:
    """How reasoning models are usually measured."""
    return Sampling(max_tokens=max_tokens, temperature=0.6, top_p=0.95)

"""Benchmarks, as data. Import names from here; `import eval` hides the builtin."""

CATALOG = {
    "gsm8k": "eval.benchmarks:gsm8k",
    "math500": "eval.benchmarks:math500",
    "aime24": "eval.benchmarks:aime24",
    "aime25": "eval.benchmarks:aime25",
    "humaneval": "eval.benchmarks:humaneval",
    "humaneval_completion": "eval.benchmarks:humaneval_completion",
    "mbpp": "eval.benchmarks:mbpp",
}

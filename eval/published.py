"""Rows of the benchmarks' published copies under one set of columns, so that a problem is the same row wherever it is
from. Each function takes a row as published and gives the benchmark's own, or None for a row that is no part of it."""

from __future__ import annotations

from typing import Any

from llmrl.errors import DataError

Row = dict[str, Any]
ASK = "\nPlease reason step by step, and put your final answer within \\boxed{}."


def question(row: Row) -> Row:
    """GSM8K: question and the worked answer that ends with '#### N'."""
    return {"question": first(row, "question"), "answer": first(row, "answer")}


def problem(row: Row) -> Row:
    """MATH-500 and AIME: problem and answer; some copies hold a prompt that ends with the request for a boxed answer."""
    return {
        "problem": first(row, "problem", "Problem", "prompt").removesuffix(ASK),
        "answer": first(row, "answer", "Answer"),
    }


def function(row: Row) -> Row:
    """HumanEval: the function's head and docstring, and the test that calls it."""
    return {name: first(row, name) for name in ("task_id", "prompt", "canonical_solution", "test", "entry_point")}


def task(row: Row) -> Row | None:
    """MBPP: a task in words and three asserts. The test split is tasks 11 to 510, as in the paper."""
    if not 11 <= int(first(row, "task_id")) <= 510:
        return None
    return {
        "task_id": first(row, "task_id"),
        "text": first(row, "text", "prompt"),
        "code": first(row, "code"),
        "test_list": first(row, "test_list"),
        "asserts": "\n".join(first(row, "test_list")),
        "test_setup_code": row.get("test_setup_code") or "\n".join(row.get("test_imports") or []),
    }


def first(row: Row, *names: str) -> Any:
    """The first of these columns that the row has; a number as text where others write text. DataError for none."""
    for name in names:
        if row.get(name) is not None:
            return str(row[name]) if name.lower() == "answer" else row[name]
    raise DataError(
        f"a row of the benchmark has no column {' or '.join(names)}, only {', '.join(row)}. Is data.source a copy of it?"
    )

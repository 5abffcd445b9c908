"""A benchmark small enough to work out by hand, and its scorers."""

from llmrl.evaluation import Benchmark
from llmrl.types import Sampling, Score


def last_word(prompt, rollout):
    """1.0 if the last word is the reference."""
    said = rollout.text.split()[-1].strip(".")
    read = said if said.isdigit() or said == "two" else None
    return Score(float(read in (prompt.reference, "two")), evidence={"read": read})


def same_word(group):
    """'2' and 'two' are one answer."""
    words = [last_word(group.prompt, one).evidence["read"] for one in group.rollouts]
    kinds = ["2" if word == "two" else word for word in words]
    return [Score(None, evidence={"class": None if k is None else kinds.index(k)}) for k in kinds]


def toy():
    """Sums that are 2; seven of them, as is said."""
    data = {"source": "nowhere", "user": "{question}", "columns": {"reference": "answer"}}
    return Benchmark("toy/word@1", data, ["eval_toy:last_word", "eval_toy:same_word"], 1, Sampling(64), 7, stripped)


def stripped(row):
    return row | {"answer": row["answer"].strip("# ")}

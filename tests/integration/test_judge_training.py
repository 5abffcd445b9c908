"""Feedback-conditioned training with a judge over HTTP."""

from __future__ import annotations

import pytest
from fixtures.chat_server import ChatServer, critique_text, part, status
from helpers import rollouts, rows, trained

SCRIPTED = {"engine": {"name": "scripted", "answers": [str(n) for n in range(10, 26)]}, "group_size": 16}
SUMMARIES = {True: "Correct and tidy.", False: "Sadly wrong."}


def marks_sums(body):
    """A judge that can compare an answer with the reference."""
    right = part(body, "RESPONSE").strip() == part(body, "REFERENCE")
    return critique_text(body, 10 if right else 1, SUMMARIES[right])


@pytest.fixture(scope="module")
def twice(tmp_path_factory):
    """Two runs of one recipe with one cache: [(folder, requests that it took)], the second with nothing left to ask."""
    folder, taken = tmp_path_factory.mktemp("judged"), []
    with ChatServer(marks_sums, [status(500), status(429, Retry_After="0")]) as server:
        service = {"url": server.url, "model": "tester", "backoff": 0.01, "cache": str(folder / "cache")}
        for name in ("first", "second"):
            before = len(server.requests)
            result = trained(
                folder,
                name,
                scorers=[{"name": "critique", "service": service, "check_answer": True}],
                training={"steps": 2, "max_logprob_gap": 100.0},
                stages=[
                    {"name": "offline", "algorithm": {"name": "fcp", "stage": "offline"}, "rollout": SCRIPTED},
                    {"name": "bootstrap", "algorithm": {"name": "fcp"}, "rollout": SCRIPTED},
                ],
            )
            taken.append((result.folder, len(server.requests) - before))
    return taken


def test_every_rollout_is_judged_and_the_feedback_is_trained_under(twice):
    folder = twice[0][0]
    steps = [row for row in rows(folder) if "gradient/norm" in row]
    assert [row["scorer/errors"] for row in steps] == [0] * 4 and all(row["rollout/count"] == 64 for row in steps)
    assert all(row["update/rows"] > 0 for row in steps[2:])
    kept = rollouts(folder, 4)
    said = {one["scores"]["critique"]["feedback"] for one in kept}
    assert said <= set(SUMMARIES.values()) and "Sadly wrong." in said
    for one in kept:
        found = one["scores"]["critique"]
        assert (found["value"] == 1.0) == (found["feedback"] == "Correct and tidy.") == found["evidence"]["correct"]


def test_the_pool_of_conditions_grows_out_of_positive_critiques_alone(twice):
    conditions = {one.get("feedback") for one in rollouts(twice[0][0], 4)} - {None}
    assert conditions == {"Correct and tidy."}


def test_the_second_run_asks_nothing_and_learns_the_same(twice):
    (first, asked), (second, again) = twice
    assert asked > 0 and again == 0
    weights = [[row["gradient/norm"] for row in rows(folder) if "gradient/norm" in row] for folder in (first, second)]
    assert weights[0] == weights[1]

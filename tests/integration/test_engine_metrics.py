"""What befalls an engine stands in the row of the step in which it did."""

from __future__ import annotations

from helpers import rows, trained

from llmrl.rollout.transformers import TransformersEngine


class Mishaps(TransformersEngine):
    """Something goes wrong in every second step."""

    def measured(self):
        return {"rollout/asked_again": self.version % 2}


def test_what_an_engine_has_measured_is_a_metric_of_the_step(tmp_path):
    run = trained(
        tmp_path,
        algorithm={"name": "grpo"},
        scorers=["judges:varied"],
        rollout={"engine": "test_engine_metrics:Mishaps"},
    )
    assert [row["rollout/asked_again"] for row in rows(run.folder, "rollout/asked_again")] == [1, 0, 1]

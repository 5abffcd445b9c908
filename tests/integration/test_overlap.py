"""A run is the same whether its scorers begin while others are still being written, or afterwards."""

import pytest
from helpers import rollouts, rows, trained, weights_of

from llmrl.rollout.transformers import TransformersEngine
from llmrl.types import Score


def even(prompt, rollout):
    return Score(sum(i % 2 == 0 for i in rollout.ids) / len(rollout.ids), feedback=rollout.text)


def shortest(group):
    return [Score(-len(r.ids) / max(len(s.ids) for s in group.rollouts)) for r in group.rollouts]


def longest(completions):
    return [len(one) / max(map(len, completions), default=1) if any(completions) else 0.0 for one in completions]


@pytest.mark.parametrize("algorithm", ["grpo", "remax"])  # remax adds a greedy answer to every group
def test_records_metrics_and_weights_do_not_depend_on_when_scorers_begin(tmp_path, monkeypatch, algorithm):
    generate, told = TransformersEngine.generate, []

    def held_back(self, prompts, sampling, num_samples, seeds, finished=None):
        return generate(self, prompts, sampling, num_samples, seeds)

    def watched(self, prompts, sampling, num_samples, seeds, finished=None):
        def tell(ended):
            told.extend(ended)
            finished(ended)

        return generate(self, prompts, sampling, num_samples, seeds, finished and tell)

    runs = {}
    for name, way in (("overlapped", watched), ("afterwards", held_back)):
        monkeypatch.setattr(TransformersEngine, "generate", way)
        functions = [even, shortest, longest]
        runs[name] = trained(
            tmp_path, name, functions, algorithm={"name": algorithm}, rollout={"group_size": 2, "max_tokens": 64}
        )
    assert told  # prompts that were finished before the others
    first, second = (runs[name].folder for name in ("overlapped", "afterwards"))
    assert rows(first) == rows(second) and weights_of(first) == weights_of(second)
    assert all(rollouts(first, step) == rollouts(second, step) for step in (1, 2, 3))

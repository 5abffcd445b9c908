"""vLLM in the trainer's process samples in a thread while the trainer trains."""

import random
import threading

import pytest
import torch
from helpers import rollouts, rows, trained, weights_of

pytest.importorskip("vllm")

from llmrl.rollout.vllm import VllmEngine

pytestmark = pytest.mark.vllm
MODEL = {"make": {"name": "tiny", "hidden": 128, "layers": 2, "heads": 4, "kv_heads": 2, "feed_forward": 64}}


def run(folder, name, staleness):
    return trained(
        folder,
        name,
        model=MODEL,
        algorithm={"name": "tis"},
        scorers=["judges:varied"],
        training={"steps": 4, "learning_rate": 1e-2},
        rollout={
            "engine": {"name": "vllm", "kv_cache_megabytes": 16},
            "staleness": staleness,
            "max_tokens": 16,
        },
    ).folder


def test_a_run_ahead_is_the_same_twice_and_leaves_the_trainers_generators_alone(tmp_path, monkeypatch):
    generate, seen = VllmEngine.generate, []

    def watched(self, *given, **options):
        before = torch.get_rng_state(), random.getstate(), torch.set_num_threads
        out = generate(self, *given, **options)
        after = torch.get_rng_state(), random.getstate(), torch.set_num_threads
        seen.append((threading.current_thread().name, torch.equal(before[0], after[0]) and before[1:] == after[1:]))
        return out

    monkeypatch.setattr(VllmEngine, "generate", watched)
    first = run(tmp_path, "first", 1)
    assert seen[0] == ("ahead", True)  # the trainer waits for it, so that nobody else can have drawn
    assert {name for name, _ in seen} == {"ahead"}
    assert [{r["version"] for r in rollouts(first, step)} for step in (1, 2, 3, 4)] == [{0}, {0}, {1}, {2}]
    second, waiting = run(tmp_path, "second", 1), run(tmp_path, "waiting", 0)
    assert rows(second) == rows(first) and weights_of(second) == weights_of(first)
    assert [r["ids"] for r in rollouts(waiting, 1)] == [r["ids"] for r in rollouts(first, 1)]
    assert weights_of(waiting) != weights_of(first)

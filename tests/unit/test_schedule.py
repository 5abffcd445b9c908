"""The learning rate of every step."""

from __future__ import annotations

import pytest

from llmrl.config import Training
from llmrl.training.schedule import learning_rate


def rates(steps: int = 8, **options) -> list[float]:
    config = Training(learning_rate=1.0, **options)
    return [learning_rate(config, step, steps) for step in range(steps)]


@pytest.mark.parametrize(
    ("options", "expected"),
    [
        ({}, [1.0] * 8),
        ({"warmup_steps": 4}, [0.25, 0.5, 0.75, 1.0, 1.0, 1.0, 1.0, 1.0]),
        ({"schedule": "linear"}, [1.0, 0.875, 0.75, 0.625, 0.5, 0.375, 0.25, 0.125]),
        ({"schedule": "linear", "final_share": 0.3}, [1.0, 0.875, 0.75, 0.625, 0.5, 0.375, 0.3, 0.3]),
        # half of 1 + cos(pi · step / 8): cos 45° = 0.7071 at steps 2 and 6
        ({"schedule": "cosine"}, [1.0, 0.96194, 0.85355, 0.69134, 0.5, 0.30866, 0.14645, 0.03806]),
        ({"schedule": "inverse_sqrt"}, [1.0, 0.70711, 0.57735, 0.5, 0.44721, 0.40825, 0.37796, 0.35355]),
        # up to 1 at the fourth step, then sqrt(4 / step)
        ({"schedule": "inverse_sqrt", "warmup_steps": 4}, [0.25, 0.5, 0.75, 1.0, 0.89443, 0.81650, 0.75593, 0.70711]),
    ],
)
def test_schedules(options, expected):
    assert rates(**options) == pytest.approx(expected, abs=1e-5)

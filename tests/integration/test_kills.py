"""kill -9 at named points and at any time: the same command goes on, and ends with what an undisturbed run ends with.

KILLS=200 makes so many trials, the default is what a test run can afford.
"""

from __future__ import annotations

import itertools
import os
import random
import shutil

import kills
import pytest

from llmrl import faults

TRIALS = int(os.environ.get("KILLS", "30"))
SEED = int(os.environ.get("KILLS_SEED", "0"))


@pytest.fixture(scope="module")
def base(tmp_path_factory):
    folder = tmp_path_factory.mktemp("kills")
    kills.prepare(folder)
    return folder


@pytest.fixture(scope="module")
def oracles(base):
    return {kind: kills.oracle(base, kind) for kind in kills.KINDS}


def test_every_point_is_reached_by_some_kind_of_run(oracles):
    reached = {point for one in oracles.values() for point in one.visits}
    assert reached == set(faults.POINTS)


def test_killed_runs_end_as_undisturbed_ones(base, oracles, capsys):
    rng, tally = random.Random(SEED), kills.Tally()
    every = [(kind, point) for kind, one in oracles.items() for point in sorted(one.visits)]
    rng.shuffle(every)
    anytime = [(kind, None) for kind in oracles]
    plan = itertools.chain.from_iterable(  # one in four at any time
        (one, another, third, anytime[i % len(anytime)])
        for i, (one, another, third) in enumerate(zip(*[itertools.cycle(every)] * 3, strict=True))
    )
    for number, (kind, point) in enumerate(itertools.islice(plan, TRIALS)):
        kills.killed(base, f"trial-{number}", oracles[kind], rng, tally, point)
        shutil.rmtree(base / "runs" / f"trial-{number}", ignore_errors=True)
    with capsys.disabled():
        print(f"\n{tally.killed} kills: resumed {tally.resumed}/{tally.killed}, equal {tally.equal}/{tally.killed}")
    assert not tally.wrong
    assert tally.equal == tally.killed == TRIALS

"""Whatever a scorer does, the step ends, nothing that it did passes for a reward, and nothing of it is left running."""

import os
import random
import time
import uuid
from pathlib import Path

import pytest
from fixtures.scorer_faults import FAULTS, LATE, faulty, faulty_columns, faulty_together, hanging

from llmrl.config import Scoring
from llmrl.pool import Pool
from llmrl.scoring import from_function, score
from llmrl.types import Group, Prompt, Rollout

KEEP_GOING = Scoring(max_error_share=1.0)
NUM = int(os.environ.get("FAULTS", "100"))  # `make faults` sets more


@pytest.fixture
def pool(monkeypatch):
    """A pool whose processes can be told by a word in their environment; when it is closed there must be none."""
    mark = f"pool-{uuid.uuid4().hex}"
    monkeypatch.setenv("LLMRL_TEST_MARK", mark)
    with Pool(2) as made:
        yield made
    assert not marked(mark)


def marked(mark):
    """Processes, other than this one, with the word in their environment."""
    found = []
    for folder in Path("/proc").iterdir():
        if folder.name.isdigit() and int(folder.name) != os.getpid():
            try:
                environment = (folder / "environ").read_bytes()
            except OSError:
                continue
            if mark.encode() in environment:
                found.append((folder.name, (folder / "cmdline").read_bytes()))
    return found


def groups_of(texts):
    return [Group(Prompt(id=str(n), text="?"), (Rollout((1,), text),)) for n, text in enumerate(texts)]


def judged(scorer, texts, pool):
    """The scores of the texts in order."""
    return [group.scores[0][scorer.name] for group in score(groups_of(texts), [scorer], KEEP_GOING, pool)]


def mixed(names, num):
    """`num` faults, each kind as often as can be, with as many good rollouts between them, in a fixed random order."""
    texts = [names[n % len(names)] for n in range(num)] + [str(n / 100) for n in range(num)]
    random.Random(3).shuffle(texts)
    return texts


def as_it_should(text, one):
    """Whether a rollout's Score is what its text asks for: no fault has a value, every good one has its own."""
    if text not in FAULTS:
        return one.value == float(text) and one.error is None
    reason = FAULTS[text][1]
    if reason is None:
        return one.value == 1.0 and one.error is None
    return one.value is None and one.error is not None and reason in one.error


def test_every_kind_of_fault_is_told_by_its_reason_and_none_becomes_a_reward(pool):
    hangs = [name for name, (_, reason) in FAULTS.items() if reason == LATE]
    others = [name for name in FAULTS if name not in hangs]
    num_hangs = NUM * len(hangs) // len(FAULTS)
    for scorer, names, num in ((faulty, others, NUM - num_hangs), (hanging, hangs, num_hangs)):
        texts = mixed(names, num)
        found = judged(from_function(scorer), texts, pool)
        assert [(text, one) for text, one in zip(texts, found, strict=True) if not as_it_should(text, one)] == []
        expected = sum(text in FAULTS and FAULTS[text][1] is not None for text in texts)
        assert sum(one.error is not None for one in found) == expected
    assert judged(from_function(faulty), ["0.25", "0.5"], pool)[1].value == 0.5  # the pool works on


def test_one_bad_rollout_costs_a_scorer_of_the_whole_step_no_other(pool):
    scorer = from_function(faulty_columns)
    for fault in ("raise", "segfault", "sys.exit", "one too few", "nan"):
        found = judged(scorer, ["0.1", "0.2", fault, "0.3", "0.4"], pool)
        assert [one.value for one in found] == [0.1, 0.2, None, 0.3, 0.4], (fault, found)
        assert found[2].error


def test_one_bad_rollout_costs_an_asynchronous_scorer_no_other(pool):
    scorer = from_function(faulty_together)
    for fault in ("raise", "segfault", "sys.exit", "interrupt", "nan"):
        found = judged(scorer, ["0.1", "0.2", fault, "0.3", "0.4"], pool)
        assert [one.value for one in found] == [0.1, 0.2, None, 0.3, 0.4], (fault, found)
        assert found[2].error


def test_a_daemon_that_a_scorer_leaves_is_found(monkeypatch):
    # the check of the fixture can fail: while the pool is open, its processes are there
    mark = f"pool-{uuid.uuid4().hex}"
    monkeypatch.setenv("LLMRL_TEST_MARK", mark)
    with Pool(1) as pool:
        judged(from_function(faulty), ["leaves a daemon"], pool)
        deadline = time.monotonic() + 5  # a process that is just being forked can be missed
        while len(found := marked(mark)) != 3 and time.monotonic() < deadline:
            time.sleep(0.01)
        assert len(found) == 3  # parent, worker, daemon
    assert not marked(mark)

"""An engine that samples by a copy of the policy, as one with servers does; a test can watch its calls and hold them up."""

from __future__ import annotations

import copy
import os
import random
import threading
import time
from contextlib import nullcontext
from dataclasses import replace
from types import SimpleNamespace

from llmrl.errors import RolloutError
from llmrl.rollout.transformers import TransformersEngine


class OwnWeights:
    """meet: called with (version, prompts) at the start of each call. delays: seconds at random, from a seed, before it ends.
    fails, hangs: number of the call that raises, or never ends.
    """

    own_weights = True
    meet = staticmethod(lambda version, prompts: None)

    def __init__(self, context, *, delays: int = -1, fails: int = 0, hangs: int = 0):
        self.context = context
        held = SimpleNamespace(model=copy.deepcopy(context.policy.model), whole=nullcontext)
        self.inner = TransformersEngine(replace(context, policy=held))
        self.random, self.delays, self.calls = random.Random(delays), delays, 0
        self.fails, self.hangs = fails, hangs

    def generate(self, prompts, sampling, num_samples, seeds, finished=None):
        self.calls += 1
        if self.calls == self.fails:
            raise RolloutError("the engine is gone")
        if self.calls == self.hangs:
            threading.Event().wait()
        version = self.inner.version
        self.meet(version, prompts)
        if self.delays >= 0:
            time.sleep(self.random.random() * 0.1)
        mood = int(os.environ.get("MOOD", "0"))  # as a server's, never the same twice
        found = self.inner.generate(prompts, sampling, num_samples, [s + mood for s in seeds], finished)
        assert self.inner.version == version, "a sync in the middle of a call"
        return found

    def sync(self, policy, version):
        self.inner.context.policy.model.load_state_dict(policy.model.state_dict())
        self.inner.sync(policy, version)

    def close(self):
        """Nothing to give back."""

"""A small real policy for every test that needs one."""

import pytest
import torch

from llmrl.config import Model
from llmrl.policy.load import load_policy
from llmrl.policy.model import Policy
from llmrl.policy.tiny import tiny

VOCABULARY = 128


@pytest.fixture(scope="session")
def tiny_folder(tmp_path_factory):
    """Qwen3, hidden 32, two layers, with its tokenizer; weights as `tiny` draws them."""
    folder = str(tmp_path_factory.mktemp("tiny"))
    return tiny(folder, hidden=32, layers=2, heads=4, kv_heads=2, feed_forward=64)


@pytest.fixture
def make_policy(tiny_folder, tmp_path):
    """make_policy(path, config options, seed, values, ...) -> Policy whose weights `enlarged` has drawn anew."""

    def make(path: str = tiny_folder, *, seed: int = 0, config: dict | None = None, **options) -> Policy:
        made = Model.model_validate({"path": path} | (config or {}))
        return enlarged(load_policy(made, tmp_path, seed=seed, **options), seed)

    return make


def enlarged(policy: Policy, seed: int = 0) -> Policy:
    """Weights so large that what stands in the context shows in every logit: a wrong position or mask cannot hide."""
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for parameter in policy.module.parameters():
            noise = torch.randn(parameter.shape, generator=generator)
            if parameter.dim() > 1:
                parameter.copy_(0.25 * noise)
            else:
                parameter.add_(0.1 * noise)
    return policy


@pytest.fixture
def worked():
    """Four rows of two prompts on which losses were worked out by hand; masked places hold 0."""
    rows = {
        "logprobs": [[-0.5, -1.2, -0.3], [-0.9, -2.0, 0], [-0.2, -0.7, -1.5], [-1.1, 0, 0]],
        "old_logprobs": [[-0.7, -1.0, -0.35], [-0.8, -1.4, 0], [-0.6, -0.75, -1.2], [-1.6, 0, 0]],
        "ref_logprobs": [[-0.8, -0.9, -0.4], [-0.7, -1.5, 0], [-0.5, -0.9, -1.3], [-1.4, 0, 0]],
        "advantages": [[1.0] * 3, [-1.0] * 3, [0.5] * 3, [-0.5] * 3],
    }
    arrays = {name: torch.tensor(values) for name, values in rows.items()}
    mask = torch.tensor([[1, 1, 1], [1, 1, 0], [1, 1, 1], [1, 0, 0]], dtype=torch.bool)
    arrays["logprobs"].requires_grad_()
    return arrays | {
        "loss_mask": mask,
        "rewards": torch.tensor([1.0, 0, 1, 0]),
        "group_ids": torch.tensor([0, 0, 1, 1]),
    }

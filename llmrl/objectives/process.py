"""What a process reward model is fitted with: one loss a labelled token."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn.functional import logsigmoid

from llmrl.batch import Loss


def process_reward(scores: Tensor, step_labels: Tensor, loss_mask: Tensor) -> Loss:
    """-(v log p + (1 - v) log(1 - p)), p = sigmoid(score): soft cross-entropy over two verdicts (arXiv:2412.11006).

    [B,T] each. v in [0, 1]: the label of the step that ends with the token; where there is none (NaN) the loss is 0, and
    the trainer counts labelled tokens only. A score that is the difference of two tokens' logits makes p their
    probability among the two. Hard labels make it the loss of arXiv:2312.08935.
    """
    labelled = loss_mask & step_labels.isfinite()
    labels = torch.where(labelled, step_labels, 0.0).float()
    given = torch.where(labelled, scores, 0.0).float()
    loss = -(labels * logsigmoid(given) + (1 - labels) * logsigmoid(-given))
    right = ((given > 0) == (labels > 0.5)).float()
    stats = {"steps/accuracy": right, "steps/error": (given.sigmoid() - labels).abs().detach()}
    return Loss(torch.where(labelled, loss, 0.0), stats=stats)

"""KL-Cov: tokens of the highest covariance are held near the old policy."""

from __future__ import annotations

from functools import partial

from llmrl.advantages.group import standardised
from llmrl.algorithm import Algorithm
from llmrl.config import NotNegative, Positive, Share
from llmrl.objectives import covariance
from llmrl.shaping.covariance import kl_cov_selection


def kl_cov(
    *, fraction: Share = 2e-3, kl_coef: NotNegative = 1.0, epochs: Positive = 1, minibatches: Positive = 8
) -> Algorithm:
    """GRPO's credit without a clip; entropy is kept up by a penalty on a few tokens (arXiv:2505.22617).

    The penalty has no gradient in the first update of a batch, so that epochs × minibatches must be more than 1.
    """
    return Algorithm(
        advantage=standardised,
        prepare=(partial(kl_cov_selection, fraction=fraction),),
        objective=(partial(covariance.kl_cov, kl_coef=kl_coef),),
        reduce="token_mean",
        epochs=epochs,
        minibatches=minibatches,
    )

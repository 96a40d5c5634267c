"""ReBN as one of verl's advantage estimators."""

from __future__ import annotations

from typing import Any

import torch
from verl.trainer.ppo.core_algos import register_adv_est

from gem.rollout import rebn_of_mask


@register_adv_est("gem_rebn")
def compute_rebn_advantage(
    token_level_rewards: torch.Tensor, response_mask: torch.Tensor, config: Any = None, **_: Any
) -> tuple[torch.Tensor, torch.Tensor]:
    """Verl's ``algorithm.adv_estimator=gem_rebn``: ReBN (:func:`gem.rollout.rebn`), over every turn of the batch.

    A turn is a run of sampled tokens; its reward is the sum of what lies on these tokens and on the bridge before
    them. Rows that verl adds to fill a batch have no sampled token, and do not count. Rejection of
    single tokens (``algorithm.rollout_correction``) would cut turns in two; whole sequences may be rejected.

    Args:
        token_level_rewards: (B, T).
        response_mask: (B, T), 1 where a token was sampled.
        config: ``algorithm``; ``gamma`` is the discount per turn.

    Returns:
        Advantages and returns, each (B, T): every sampled token has those of its turn.
    """
    rewards, mask = token_level_rewards.detach().cpu().double().numpy(), response_mask.bool().cpu().numpy()
    advantages, returns = (torch.tensor(values) for values in rebn_of_mask(rewards, mask, float(config.gamma)))
    return advantages.to(token_level_rewards), returns.to(token_level_rewards)

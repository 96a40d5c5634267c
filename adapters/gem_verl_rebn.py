"""ReBN as one of verl's advantage estimators."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from verl.trainer.ppo.core_algos import register_adv_est

from gem.rollout import discounted_returns, rebn, spread_over_tokens


@register_adv_est("gem_rebn")
def compute_rebn_advantage(
    token_level_rewards: torch.Tensor, response_mask: torch.Tensor, config: Any = None, **_: Any
) -> tuple[torch.Tensor, torch.Tensor]:
    """Verl's ``algorithm.adv_estimator=gem_rebn``: :func:`gem.rollout.rebn`, over every turn of the batch.

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
    mask = response_mask.bool().cpu()
    following = torch.cat([mask[:, 1:], torch.zeros_like(mask[:, :1])], dim=1)
    ends = mask & ~following
    turn_ends = [torch.nonzero(row).flatten().tolist() for row in ends]
    turn_of_token = ends.cumsum(dim=1) - ends.long()
    sums = torch.zeros(mask.shape[0], mask.shape[1] + 1, dtype=torch.float64)
    sums.scatter_add_(1, turn_of_token, token_level_rewards.detach().cpu().double())
    rewards = [row[: len(of_row)].tolist() for row, of_row in zip(sums, turn_ends, strict=True)]
    gamma = float(config.gamma)

    def spread(of_turns: Sequence[Any]) -> torch.Tensor:
        of_tokens = spread_over_tokens(of_turns, turn_ends, response_mask.shape[1])
        return torch.tensor(of_tokens).to(token_level_rewards) * response_mask

    return spread(rebn(rewards, gamma)), spread([discounted_returns(row, gamma) for row in rewards])

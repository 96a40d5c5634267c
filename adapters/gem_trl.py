"""GEM for TRL: train on any GEM environment with TRL's released ``GRPOTrainer``.

.. code-block:: python

    from gem_trl import GemGRPOTrainer, GemRollout, gem_reward, task_dataset
    from gem.tasks import make_tasks

    trainer = GRPOTrainer(                       # or GemGRPOTrainer(..., gamma=1.0), for ReBN
        model=model,
        processing_class=tokenizer,
        args=GRPOConfig(max_completion_length=64, ...),   # of one turn, not of the episode
        train_dataset=task_dataset(make_tasks("game:GuessTheNumber-v1-easy", range(1024))),
        rollout_func=GemRollout(tokenizer, max_turns=4),
        reward_funcs=gem_reward,
    )

How GEM maps to TRL:

* A row of the data set is a task; it rides inside the prompt, since ``rollout_func`` is given nothing else. TRL
  repeats the row for a group, so a group begins from one seed, on whatever rank its members are.
* The ids of an episode reach the loss as they were sampled: first prompt, completion, and ``env_mask`` (1 on
  sampled tokens). Nothing is decoded and encoded again.
* **Rewards.** TRL keeps one scalar per episode: the sum of the rewards of its turns (``gem_reward``).
  :class:`GemGRPOTrainer` keeps all of them: it replaces the advantages with one per turn (ReBN).
* **Failures.** The reward of an episode that the environment or the engine ended is None, and its ``env_mask`` is 0.
  TRL then leaves it out of the mean and the deviation of its group, and gives it the advantage 0.
* **Stop tokens.** The tokens with which the chat template ends an answer are added to those at which TRL's generation
  stops: the end token of a base model is another one.
* Log-probabilities are handed on where TRL's generation has them (vLLM); else TRL computes them itself.

TRL counts an episode whose last turn has no end token as clipped, which is what ``completions/clipped_ratio``
shows here; leave ``mask_truncated_completions`` off. Works with TRL 1.x; tested with the
version in ``ci/constraints/trl.txt``. The other parts are in ``gem_trl_rollout``, ``gem_trl_rewards`` and
``gem_trl_generation``.
"""

from __future__ import annotations

import math
from typing import Any

try:
    import numpy as np
    import torch
    from accelerate.utils import gather_object
    from trl import GRPOTrainer
    from trl import __version__ as trl_version
except ImportError as error:
    raise ImportError(f"gem_trl needs TRL and what it needs ({error}): install gem-adapters[trl]") from error

if int(trl_version.split(".")[0]) != 1:
    raise ImportError(f"gem_trl works with TRL 1.x, and trl {trl_version} is installed: install gem-adapters[trl]")

from gem.rollout import check_gamma, rebn, spread_over_tokens
from gem_trl_rewards import gem_reward
from gem_trl_rollout import GemRollout, task_dataset

__all__ = ["GemGRPOTrainer", "GemRollout", "gem_reward", "task_dataset"]


class GemGRPOTrainer(GRPOTrainer):
    """TRL's trainer with one advantage per turn: ReBN, over every turn of the batch and of all ranks.

    The clipped objective, the KL term and the rest are TRL's. Groups play no role in these advantages. Rewards are
    summed up with ``reward_weights``, as TRL does; what further ``reward_funcs`` return for an episode is a reward of
    its last turn.

    Args:
        *args: of ``GRPOTrainer``; ``rollout_func`` must be a :class:`GemRollout`.
        gamma: discount per turn.
        **kwargs: of ``GRPOTrainer``.

    Raises:
        ValueError: ``gamma`` is not from 0 to 1, or an option asks for other advantages; or see
            :meth:`GemRollout.prepare`.
        TypeError: ``rollout_func`` is no :class:`GemRollout`, or ``reward_funcs`` are without :func:`gem_reward`.
    """

    def __init__(self, *args: Any, gamma: float = 1.0, **kwargs: Any) -> None:
        self.gamma = check_gamma(gamma)
        super().__init__(*args, **kwargs)
        if not isinstance(self.rollout_func, GemRollout):
            raise TypeError(f"GemGRPOTrainer needs rollout_func=GemRollout(...), got {self.rollout_func!r}")
        if gem_reward not in self.reward_funcs:
            raise TypeError("GemGRPOTrainer needs gem_reward among its reward_funcs")
        if self.args.scale_rewards == "none":
            raise ValueError("GemGRPOTrainer normalises over the batch (ReBN): scale_rewards is left out, or 'batch'")
        if getattr(self.args, "multi_objective_aggregation", "sum_then_normalize") != "sum_then_normalize":
            raise ValueError("GemGRPOTrainer sums up the rewards first: leave multi_objective_aggregation out")
        self.rollout_func.prepare(self)

    def _calculate_rewards(self, *args: Any, **kwargs: Any) -> torch.Tensor:
        self._scores = super()._calculate_rewards(*args, **kwargs)  # (episodes of all ranks, reward functions)
        return self._scores

    def _generate_and_score_completions(self, inputs: list[dict[str, Any]]) -> dict[str, Any]:
        output = super()._generate_and_score_completions(inputs)
        first = self.accelerator.process_index * len(inputs)
        own = slice(first, first + len(inputs))
        rewards = self._turn_rewards(inputs, self._scores[own])
        everyone = gather_object(rewards)  # of all ranks, in their order
        of_learned = iter(rebn([row for row in everyone if row is not None], self.gamma))
        of_turns = [np.zeros(0) if row is None else next(of_learned) for row in everyone][own]
        ends = [[] if row["left_out"] else row["turn_ends"] for row in inputs]
        completions = output["completion_ids"]
        of_tokens = spread_over_tokens(of_turns, ends, completions.shape[1])
        output["advantages"] = torch.tensor(of_tokens, dtype=torch.float32, device=completions.device)
        return output

    def _turn_rewards(self, inputs: list[dict[str, Any]], scores: torch.Tensor) -> list[list[float] | None]:
        """Return the weighted sums of rewards per turn; None for an episode that is left out."""
        weights = self.reward_weights.tolist()
        of_gem = self.reward_funcs.index(gem_reward)
        rewards: list[list[float] | None] = []
        for row, of_functions in zip(inputs, scores.tolist(), strict=True):
            if row["left_out"]:
                rewards.append(None)
                continue
            of_turns = [weights[of_gem] * reward for reward in row["turn_rewards"]]
            of_turns[-1] += sum(
                weight * score
                for i, (weight, score) in enumerate(zip(weights, of_functions, strict=True))
                if i != of_gem and not math.isnan(score)  # TRL's mark of a function that does not apply
            )
            rewards.append(of_turns)
        return rewards
